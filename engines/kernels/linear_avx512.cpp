// Products of 8 bits, four at a time (VNNI). The instruction takes unsigned by signed: weights are the unsigned ones, 128 too
// large, for which the sum of a row makes up.
#ifndef QUASAR_EMULATED  // by tests, where the processor lacks the instructions
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")
#endif
#include "linear_sets.h"

namespace quasar {
namespace {

inline __attribute__((always_inline)) void add_products(__m512i& sums, __m512i w, __m512i x) {
#ifdef QUASAR_EMULATED
    sums = _mm512_dpbusd_epi32(sums, w, x);
#else
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(w), "v"(x));  // GCC 12 copies the sums of the intrinsic to and fro
#endif
}

struct Avx512 {
    static constexpr int ROWS = 6, COLUMNS = 4;  // 24 of 32 registers are sums
    static constexpr size_t STEP = 64;
    static constexpr int32_t EXCESS = 128;

    template <int R, int C>
    static void multiply(const int8_t* x, size_t stride, const int8_t* w, size_t depth, int32_t* products) {
        __m512i sums[R][C];
#pragma GCC unroll 32
        for (int i = 0; i < R * C; ++i) sums[i / C][i % C] = _mm512_setzero_si512();
        const __m512i sign = _mm512_set1_epi8(-128);
        for (size_t k = 0; k < depth; k += STEP) {
            const __mmask64 inside = depth - k < STEP ? (1ull << (depth - k)) - 1 : ~0ull;
            __m512i weights[C];
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) weights[c] = _mm512_xor_si512(sign, _mm512_maskz_loadu_epi8(inside, w + c * depth + k));
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const __m512i values = _mm512_loadu_si512(x + r * stride + k);
#pragma GCC unroll 8
                for (int c = 0; c < C; ++c) add_products(sums[r][c], weights[c], values);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            if constexpr (C == 4)
                store_sums(sums[r][0], sums[r][1], sums[r][2], sums[r][3], products + r * MOST_COLUMNS);
            else
                products[r * MOST_COLUMNS] = _mm512_reduce_add_epi32(sums[r][0]);
        }
    }

    // The sums of four vectors, side by side.
    static void store_sums(__m512i a, __m512i b, __m512i c, __m512i d, int32_t* out) {
        const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        const __m512i abcd = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
        const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(abcd), _mm512_extracti64x4_epi64(abcd, 1));
        const __m128i whole = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), whole);
    }
};

__mmask16 first(size_t count) { return static_cast<__mmask16>(count < 16 ? (1u << count) - 1 : 0xffff); }

float largest(const float* x, size_t count) {
    __m512 most = _mm512_setzero_ps();
    for (size_t i = 0; i < count; i += 16)
        most = _mm512_max_ps(_mm512_abs_ps(_mm512_maskz_loadu_ps(first(count - i), x + i)), most);
    return _mm512_reduce_max_ps(most);
}

void quantize(const float* x, size_t count, float divisor, float step, float* left_over, int8_t* values, int32_t* total) {
    const __m512 divisors = _mm512_set1_ps(divisor), steps = _mm512_set1_ps(step);
    const __m512 least = _mm512_set1_ps(-128), most = _mm512_set1_ps(127);
    __m512i totals = _mm512_setzero_si512();
    for (size_t i = 0; i < count; i += 16) {
        const __mmask16 inside = first(count - i);
        const __m512 unit = _mm512_div_ps(_mm512_maskz_loadu_ps(inside, x + i), divisors);
        const __m512i wide = _mm512_cvtps_epi32(_mm512_max_ps(_mm512_min_ps(_mm512_div_ps(unit, steps), most), least));
        totals = _mm512_add_epi32(totals, wide);
        _mm512_mask_cvtepi32_storeu_epi8(values + i, inside, wide);
        if (left_over != nullptr)
            _mm512_mask_storeu_ps(left_over + i, inside, _mm512_sub_ps(unit, _mm512_mul_ps(_mm512_cvtepi32_ps(wide), steps)));
    }
    *total = _mm512_reduce_add_epi32(totals);
}

}  // namespace

const LinearCode LINEAR_AVX512_VNNI = {largest, quantize, multiply<Avx512>, finish};

}  // namespace quasar
