#ifndef QUASAR_EMULATED  // by tests, where the processor lacks the instructions
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#endif
#include "attention_sets.h"

namespace quasar {
namespace {

struct Avx512 {
    using Vector = __m512;
    static constexpr int LANES = 16, ROWS = 8, SUMS = 24;  // 24 of 32 registers are sums

    static Vector load(const float* from) { return _mm512_loadu_ps(from); }
    static Vector load(const int8_t* from) {
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
    }
    static void store(float* to, Vector x) { _mm512_storeu_ps(to, x); }
    static Vector all(float x) { return _mm512_set1_ps(x); }
    static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
    static Vector largest(Vector a, Vector b) { return _mm512_max_ps(a, b); }
    static Vector nearest(Vector x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static Vector zero_below(Vector x, float bound, Vector y) {
        return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, all(bound), _CMP_LT_OQ), _mm512_setzero_ps());
    }
    // x * 2^power; power is whole and in the range of exponents
    static Vector times_power(Vector x, Vector power) { return _mm512_scalef_ps(x, power); }
    static float first(Vector x) { return _mm512_cvtss_f32(x); }
    static float sum(Vector x) { return _mm512_reduce_add_ps(x); }
    static float largest_lane(Vector x) { return _mm512_reduce_max_ps(x); }
};

}  // namespace

const AttentionCode ATTENTION_AVX512 = {rotate, store, attend<Avx512>, merge<Avx512>};

}  // namespace quasar
