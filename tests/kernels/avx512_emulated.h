// The AVX-512 instructions that the kernels use, lane by lane, for processors that lack them. Included before everything else.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulated {

template <class Lane>
struct Lanes {
    Lane at[64 / sizeof(Lane)];
};
template <class Lane, class Vector>
Lanes<Lane> lanes(const Vector& v) {
    Lanes<Lane> result;
    static_assert(sizeof v == sizeof result);
    std::memcpy(&result, &v, sizeof v);
    return result;
}
template <class Vector, class Lane>
Vector vector(const Lanes<Lane>& v) {
    Vector result;
    std::memcpy(&result, &v, sizeof result);
    return result;
}
template <class Lane, class Vector, class Function>
__attribute__((noinline)) Vector each(const Vector& a, const Vector& b, Function function) {
    Lanes<Lane> x = lanes<Lane>(a), y = lanes<Lane>(b);
    for (size_t i = 0; i < 64 / sizeof(Lane); ++i) x.at[i] = function(x.at[i], y.at[i]);
    return vector<Vector>(x);
}
template <class Lane, class Vector>
__attribute__((noinline)) Vector all(Lane value) {
    Lanes<Lane> v;
    for (Lane& lane : v.at) lane = value;
    return vector<Vector>(v);
}
template <class Lane, class Vector>
__attribute__((noinline)) Vector load(uint64_t mask, const void* from) {
    Lanes<Lane> v{};
    for (size_t i = 0; i < 64 / sizeof(Lane); ++i)
        if (mask >> i & 1) v.at[i] = static_cast<const Lane*>(from)[i];
    return vector<Vector>(v);
}
template <class Lane>
__m512i unpack(__m512i a, __m512i b, size_t half) {
    constexpr size_t N = 16 / sizeof(Lane);  // lanes of 128 bits
    const auto x = lanes<Lane>(a), y = lanes<Lane>(b);
    Lanes<Lane> v;
    for (size_t i = 0; i < 64 / sizeof(Lane); ++i) {
        const size_t from = i / N * N + half * N / 2 + i % N / 2;
        v.at[i] = i % 2 ? y.at[from] : x.at[from];
    }
    return vector<__m512i>(v);
}
inline __m512i dot(__m512i sums, __m512i u, __m512i s) {
    auto v = lanes<int32_t>(sums);
    const auto x = lanes<uint8_t>(u);
    const auto y = lanes<int8_t>(s);
    for (size_t i = 0; i < 64; ++i) v.at[i / 4] += x.at[i] * y.at[i];
    return vector<__m512i>(v);
}
template <class Lane, class Vector, class Function>
__attribute__((noinline)) Lane reduce(const Vector& v, Function function) {
    const auto x = lanes<Lane>(v);
    Lane result = x.at[0];
    for (size_t i = 1; i < 64 / sizeof(Lane); ++i) result = function(result, x.at[i]);
    return result;
}
inline __m512i to_integers(__m512 a) {
    const auto x = lanes<float>(a);
    Lanes<int32_t> v;
    for (size_t i = 0; i < 16; ++i) v.at[i] = std::fabs(x.at[i]) < 2147483648.0f ? static_cast<int32_t>(std::nearbyint(x.at[i])) : INT32_MIN;
    return vector<__m512i>(v);
}
__attribute__((noinline)) inline __m512 to_floats(__m512i a) {
    const auto x = lanes<int32_t>(a);
    Lanes<float> v;
    for (size_t i = 0; i < 16; ++i) v.at[i] = static_cast<float>(x.at[i]);
    return vector<__m512>(v);
}
inline void store_bytes(void* to, uint64_t mask, __m512i a) {
    const auto x = lanes<int32_t>(a);
    for (size_t i = 0; i < 16; ++i)
        if (mask >> i & 1) static_cast<int8_t*>(to)[i] = static_cast<int8_t>(x.at[i]);
}
__attribute__((noinline)) inline void store_floats(void* to, uint64_t mask, __m512 a) {
    const auto x = lanes<float>(a);
    for (size_t i = 0; i < 16; ++i)
        if (mask >> i & 1) static_cast<float*>(to)[i] = x.at[i];
}
inline __m256i half(__m512i a, int which) {
    const auto x = lanes<int64_t>(a);
    __m256i result;
    std::memcpy(&result, x.at + 4 * which, sizeof result);
    return result;
}
template <class Narrow, class Wide, class Vector>
__attribute__((noinline)) __m512i widened(Vector a) {
    Narrow numbers[sizeof a / sizeof(Narrow)];
    std::memcpy(numbers, &a, sizeof numbers);
    Lanes<Wide> v;
    for (size_t i = 0; i < 64 / sizeof(Wide); ++i) v.at[i] = numbers[i];
    return vector<__m512i>(v);
}
__attribute__((noinline)) inline __m512i dot_of_pairs(__m512i sums, __m512i a, __m512i b) {
    auto v = lanes<int32_t>(sums);
    const auto x = lanes<int16_t>(a), y = lanes<int16_t>(b);
    for (size_t i = 0; i < 32; ++i) v.at[i / 2] += x.at[i] * y.at[i];
    return vector<__m512i>(v);
}
__attribute__((noinline)) inline __m512 multiply_add(__m512 a, __m512 b, __m512 c) {
    const auto x = lanes<float>(a), y = lanes<float>(b);
    auto z = lanes<float>(c);
    for (size_t i = 0; i < 16; ++i) z.at[i] = std::fma(x.at[i], y.at[i], z.at[i]);
    return vector<__m512>(z);
}
inline uint32_t less(__m512 a, __m512 b) {
    const auto x = lanes<float>(a), y = lanes<float>(b);
    uint32_t mask = 0;
    for (size_t i = 0; i < 16; ++i) mask |= (x.at[i] < y.at[i]) << i;
    return mask;
}
inline __m512 choose(__m512 a, uint32_t mask, __m512 b) {
    auto x = lanes<float>(a);
    const auto y = lanes<float>(b);
    for (size_t i = 0; i < 16; ++i)
        if (mask >> i & 1) x.at[i] = y.at[i];
    return vector<__m512>(x);
}
template <class T>
T sum(T a, T b) { return a + b; }
inline float larger(float a, float b) { return a > b ? a : b; }  // as the instruction: the second, where one is no number
inline float smaller(float a, float b) { return a < b ? a : b; }

}  // namespace emulated

#define _mm512_setzero_si512() emulated::all<int32_t, __m512i>(0)
#define _mm512_set1_epi8(x) emulated::all<int8_t, __m512i>(x)
#define _mm512_set1_ps(x) emulated::all<float, __m512>(x)
#define _mm512_setzero_ps() emulated::all<float, __m512>(0)
#define _mm512_xor_si512(a, b) emulated::each<int64_t>(a, b, [](int64_t x, int64_t y) { return x ^ y; })
#define _mm512_maskz_loadu_epi8(mask, from) emulated::load<int8_t, __m512i>(mask, from)
#define _mm512_maskz_loadu_ps(mask, from) emulated::load<float, __m512>(mask, from)
#define _mm512_loadu_si512(from) emulated::load<int8_t, __m512i>(~0ull, from)
#define _mm512_set1_epi32(x) emulated::all<int32_t, __m512i>(x)
#define _mm512_storeu_si512(to, a) std::memcpy(to, emulated::lanes<int32_t>(a).at, 64)
#define _mm512_and_si512(a, b) emulated::each<int64_t>(a, b, [](int64_t x, int64_t y) { return x & y; })
#define _mm512_or_si512(a, b) emulated::each<int64_t>(a, b, [](int64_t x, int64_t y) { return x | y; })
#define _mm512_slli_epi32(a, bits) emulated::each<uint32_t>(a, a, [](uint32_t x, uint32_t) { return x << bits; })
#define _mm512_dpbusd_epi32(sums, u, s) emulated::dot(sums, u, s)
#define _mm512_dpwssd_epi32(sums, a, b) emulated::dot_of_pairs(sums, a, b)
#define _mm512_add_epi32(a, b) emulated::each<int32_t>(a, b, emulated::sum<int32_t>)
#define _mm512_unpacklo_epi32(a, b) emulated::unpack<int32_t>(a, b, 0)
#define _mm512_unpackhi_epi32(a, b) emulated::unpack<int32_t>(a, b, 1)
#define _mm512_unpacklo_epi64(a, b) emulated::unpack<int64_t>(a, b, 0)
#define _mm512_unpackhi_epi64(a, b) emulated::unpack<int64_t>(a, b, 1)
#define _mm512_castsi512_si256(a) emulated::half(a, 0)
#define _mm512_extracti64x4_epi64(a, which) emulated::half(a, which)
#define _mm512_reduce_add_epi32(a) emulated::reduce<int32_t>(a, emulated::sum<int32_t>)
#define _mm512_reduce_max_ps(a) emulated::reduce<float>(a, emulated::larger)
#define _mm512_abs_ps(a) emulated::each<float>(a, a, [](float x, float) { return std::fabs(x); })
#define _mm512_max_ps(a, b) emulated::each<float>(a, b, emulated::larger)
#define _mm512_min_ps(a, b) emulated::each<float>(a, b, emulated::smaller)
#define _mm512_div_ps(a, b) emulated::each<float>(a, b, [](float x, float y) { return x / y; })
#define _mm512_mul_ps(a, b) emulated::each<float>(a, b, [](float x, float y) { return x * y; })
#define _mm512_sub_ps(a, b) emulated::each<float>(a, b, [](float x, float y) { return x - y; })
#define _mm512_cvtps_epi32(a) emulated::to_integers(a)
#define _mm512_cvtepi32_ps(a) emulated::to_floats(a)
#define _mm512_mask_cvtepi32_storeu_epi8(to, mask, a) emulated::store_bytes(to, mask, a)
#define _mm512_loadu_ps(from) emulated::load<float, __m512>(~0ull, from)
#define _mm512_storeu_ps(to, a) emulated::store_floats(to, ~0ull, a)
#define _mm512_cvtepi8_epi32(a) emulated::widened<int8_t, int32_t>(a)
#define _mm512_cvtepu8_epi16(a) emulated::widened<uint8_t, int16_t>(a)
#define _mm512_fmadd_ps(a, b, c) emulated::multiply_add(a, b, c)
#define _mm512_roundscale_ps(a, rounding) emulated::each<float>(a, a, [](float x, float) { return std::nearbyint(x); })
#define _mm512_scalef_ps(a, b) emulated::each<float>(a, b, [](float x, float y) { return std::ldexp(x, static_cast<int>(y)); })
#define _mm512_cmp_ps_mask(a, b, which) emulated::less(a, b)
#define _mm512_mask_mov_ps(a, mask, b) emulated::choose(a, mask, b)
#define _mm512_cvtss_f32(a) emulated::lanes<float>(a).at[0]
#define _mm512_reduce_add_ps(a) emulated::reduce<float>(a, emulated::sum<float>)
#define _mm512_mask_storeu_ps(to, mask, a) emulated::store_floats(to, mask, a)
