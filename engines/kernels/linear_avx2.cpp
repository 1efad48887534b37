// Products of 8 bits are added in pairs of 16 bits, which has no room for unsigned by signed bytes of any size. So magnitudes are
// multiplied: at most 128 by 127, and two of them fit. Weights must not be -128, and no export writes that.
#pragma GCC target("avx2,fma")
#include "linear_sets.h"

namespace quasar {
namespace {

int32_t sum(__m256i lanes) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

struct Avx2 {
    static constexpr int ROWS = 5, COLUMNS = 2;  // 10 of 16 registers are sums
    static constexpr int32_t EXCESS = 0;
    static constexpr size_t STEP = 32;

    template <int R, int C>
    static void multiply(const int8_t* x, size_t stride, const int8_t* w, size_t depth, int32_t* products) {
        __m256i sums[R][C];
#pragma GCC unroll 16
        for (int i = 0; i < R * C; ++i) sums[i / C][i % C] = _mm256_setzero_si256();
        const __m256i ones = _mm256_set1_epi16(1);
        size_t k = 0;
        for (; k + STEP <= depth; k += STEP) {
            __m256i weights[C];
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) weights[c] = load(w + c * depth + k);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const __m256i values = load(x + r * stride + k), magnitudes = _mm256_abs_epi8(values);
#pragma GCC unroll 8
                for (int c = 0; c < C; ++c) {
                    const __m256i pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(weights[c], values));
                    sums[r][c] = _mm256_add_epi32(sums[r][c], _mm256_madd_epi16(pairs, ones));
                }
            }
        }
#pragma GCC unroll 16
        for (int i = 0; i < R * C; ++i) products[i / C * MOST_COLUMNS + i % C] = sum(sums[i / C][i % C]);
        for (; k < depth; ++k)
            for (int i = 0; i < R * C; ++i) products[i / C * MOST_COLUMNS + i % C] += w[i % C * depth + k] * x[i / C * stride + k];
    }

    static __m256i load(const int8_t* from) {
        __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        asm("" : "+x"(bytes));  // in a register: the compiler would load it again for each use
        return bytes;
    }
};

float largest(const float* x, size_t count) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 most = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 8 <= count; i += 8) most = _mm256_max_ps(most, _mm256_and_ps(magnitude, _mm256_loadu_ps(x + i)));
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, most);
    float result = 0;
    for (float lane : lanes) result = lane > result ? lane : result;
    for (; i < count; ++i) result = __builtin_fabsf(x[i]) > result ? __builtin_fabsf(x[i]) : result;
    return result;
}

void quantize(const float* x, size_t count, float divisor, float step, float* left_over, int8_t* values, int32_t* total) {
    const __m256 divisors = _mm256_set1_ps(divisor), steps = _mm256_set1_ps(step);
    const __m256 least = _mm256_set1_ps(-128), most = _mm256_set1_ps(127);
    __m256i totals = _mm256_setzero_si256();
    for (size_t i = 0; i < count; i += 8) {
        const size_t left = count - i < 8 ? count - i : 8;
        alignas(32) float part[8] = {};
        std::memcpy(part, x + i, left * sizeof(float));
        const __m256 unit = _mm256_div_ps(_mm256_load_ps(part), divisors);
        const __m256i wide = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(_mm256_div_ps(unit, steps), most), least));
        totals = _mm256_add_epi32(totals, wide);
        const __m128i narrow = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
        const int64_t integers = _mm_cvtsi128_si64(_mm_packs_epi16(narrow, narrow));
        std::memcpy(values + i, &integers, left);
        if (left_over != nullptr) {
            _mm256_store_ps(part, _mm256_sub_ps(unit, _mm256_mul_ps(_mm256_cvtepi32_ps(wide), steps)));
            std::memcpy(left_over + i, part, left * sizeof(float));
        }
    }
    *total = sum(totals);
}

}  // namespace

const LinearCode LINEAR_AVX2 = {largest, quantize, multiply<Avx2>, finish};

}  // namespace quasar
