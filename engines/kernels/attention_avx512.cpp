#ifndef QUASAR_EMULATED  // by tests, where the processor lacks the instructions
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")
#endif
#include "attention_sets.h"

namespace quasar {
namespace {

struct Avx512 {
    using Vector = __m512;
    using Integers = __m512i;
    static constexpr int LANES = 16, ROWS = 8, SUMS = 24;  // 24 of 32 registers are sums

    static Vector load(const float* from) { return _mm512_loadu_ps(from); }
    static Vector load(const int8_t* from) {
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
    }
    static void store(float* to, Vector x) { _mm512_storeu_ps(to, x); }
    static Vector all(float x) { return _mm512_set1_ps(x); }
    static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
    static Vector largest(Vector a, Vector b) { return _mm512_max_ps(a, b); }
    static Vector magnitude(Vector x) { return _mm512_abs_ps(x); }
    static Vector nearest(Vector x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static Vector zero_below(Vector x, float bound, Vector y) {
        return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, all(bound), _CMP_LT_OQ), _mm512_setzero_ps());
    }
    // x * 2^power; power is whole and in the range of exponents
    static Vector times_power(Vector x, Vector power) { return _mm512_scalef_ps(x, power); }
    static float first(Vector x) { return _mm512_cvtss_f32(x); }
    static float sum(Vector x) { return _mm512_reduce_add_ps(x); }
    // numbers of planes, as pairs of 16 bits: a group of 32
    static Integers upper_halves(const uint8_t* upper, int) { return _mm512_cvtepu8_epi16(halves(upper)); }
    static Integers both_halves(const uint8_t* upper, const uint8_t* lower, int) {
        return _mm512_cvtepu8_epi16(_mm256_or_si256(_mm256_slli_epi16(halves(upper), 4), halves(lower)));
    }
    static __m256i halves(const uint8_t* group) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(group));
        return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(bytes, 4), bytes), _mm256_set1_epi8(0x0f));
    }
    static Integers integers(int32_t x) { return _mm512_set1_epi32(x); }
    static Integers add_products(Integers sums, Integers a, Integers b) { return _mm512_dpwssd_epi32(sums, a, b); }
    static Vector floats(Integers x) { return _mm512_cvtepi32_ps(x); }
    // first and second, rounded, as the lower and the upper 16 bits
    static void store_pairs(int32_t* to, Vector first, Vector second) {
        const Integers low = _mm512_and_si512(_mm512_cvtps_epi32(first), integers(0xffff));
        _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(_mm512_cvtps_epi32(second), 16)));
    }
    static float largest_lane(Vector x) { return _mm512_reduce_max_ps(x); }
};

}  // namespace

const AttentionCode ATTENTION_AVX512 = {rotate, settle, store, attend<Avx512>, merge<Avx512>};

}  // namespace quasar
