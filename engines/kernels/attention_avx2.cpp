#pragma GCC target("avx2,fma")
#include "attention_sets.h"

namespace quasar {
namespace {

struct Avx2 {
    using Vector = __m256;
    static constexpr int LANES = 8, ROWS = 6, SUMS = 12;  // 12 of 16 registers are sums

    static Vector load(const float* from) { return _mm256_loadu_ps(from); }
    static Vector load(const int8_t* from) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
    }
    static void store(float* to, Vector x) { _mm256_storeu_ps(to, x); }
    static Vector all(float x) { return _mm256_set1_ps(x); }
    static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
    static Vector largest(Vector a, Vector b) { return _mm256_max_ps(a, b); }
    static Vector nearest(Vector x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static Vector zero_below(Vector x, float bound, Vector y) { return _mm256_andnot_ps(_mm256_cmp_ps(x, all(bound), _CMP_LT_OQ), y); }
    // x * 2^power; power is whole and in the range of exponents
    static Vector times_power(Vector x, Vector power) {
        const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127)), 23);
        return x * _mm256_castsi256_ps(exponent);
    }
    static float first(Vector x) { return _mm256_cvtss_f32(x); }
    static float sum(Vector x) {
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        four = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
    }
    static float largest_lane(Vector x) {
        __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        four = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
    }
};

}  // namespace

const AttentionCode ATTENTION_AVX2 = {rotate, store, attend<Avx2>, merge<Avx2>};

}  // namespace quasar
