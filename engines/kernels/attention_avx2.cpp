#pragma GCC target("avx2,fma")
#include "attention_sets.h"

namespace quasar {
namespace {

struct Avx2 {
    using Vector = __m256;
    using Integers = __m256i;
    static constexpr int LANES = 8, ROWS = 6, SUMS = 12;  // 12 of 16 registers are sums

    static Vector load(const float* from) { return _mm256_loadu_ps(from); }
    static Vector load(const int8_t* from) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
    }
    static void store(float* to, Vector x) { _mm256_storeu_ps(to, x); }
    static Vector all(float x) { return _mm256_set1_ps(x); }
    static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
    static Vector largest(Vector a, Vector b) { return _mm256_max_ps(a, b); }
    static Vector magnitude(Vector x) { return _mm256_andnot_ps(all(-0.0f), x); }
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
    // numbers of planes, as pairs of 16 bits: the first or the second half of a group of 32
    static Integers upper_halves(const uint8_t* upper, int part) { return _mm256_cvtepu8_epi16(halves(upper, part)); }
    static Integers both_halves(const uint8_t* upper, const uint8_t* lower, int part) {
        return _mm256_cvtepu8_epi16(_mm_or_si128(_mm_slli_epi16(halves(upper, part), 4), halves(lower, part)));
    }
    static __m128i halves(const uint8_t* group, int part) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(group));
        return _mm_and_si128(part == 0 ? bytes : _mm_srli_epi16(bytes, 4), _mm_set1_epi8(0x0f));
    }
    static Integers integers(int32_t x) { return _mm256_set1_epi32(x); }
    static Integers add_products(Integers sums, Integers a, Integers b) {
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(a, b));
        asm volatile("" : "+x"(sums));  // else GCC multiplies for all rows first, and has no registers left for the sums
        return sums;
    }
    static Vector floats(Integers x) { return _mm256_cvtepi32_ps(x); }
    // first and second, rounded, as the lower and the upper 16 bits
    static void store_pairs(int32_t* to, Vector first, Vector second) {
        const Integers low = _mm256_and_si256(_mm256_cvtps_epi32(first), integers(0xffff));
        _mm256_storeu_si256(reinterpret_cast<Integers*>(to), _mm256_or_si256(low, _mm256_slli_epi32(_mm256_cvtps_epi32(second), 16)));
    }
    static float largest_lane(Vector x) {
        __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        four = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
    }
};

}  // namespace

const AttentionCode ATTENTION_AVX2 = {rotate, settle, store, attend<Avx2>, merge<Avx2>};

}  // namespace quasar
