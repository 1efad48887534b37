// What is written into caches. Included where `attention_sets.h` is.
#pragma once

#include "attention_code.h"

namespace quasar {
namespace {

constexpr float STEPS = 240;  // from the least number of 8 bits to the largest: the upper half alone is then at most half its step off
constexpr int LEAST_CODE = 8;

inline void rotate(const float* x, const float* cos, const float* sin, size_t dim, float scale, float* rotated) {
    const size_t half = dim / 2;
    for (size_t i = 0; i < half; ++i) {
        const float low = x[i], high = x[i + half];
        rotated[i] = (cos == nullptr ? low : low * cos[i] - high * sin[i]) * scale;
        rotated[i + half] = (cos == nullptr ? high : high * cos[i] + low * sin[i]) * scale;
    }
}

// x as int8 under a scale of its own, `step` numbers apart; gives the scale.
inline float quantize(const float* x, size_t dim, int8_t* to, size_t step) {
    float largest = 0;
    for (size_t d = 0; d < dim; ++d) largest = __builtin_fabsf(x[d]) > largest ? __builtin_fabsf(x[d]) : largest;
    const float inverse = largest > 0 ? 127 / largest : 0;
    for (size_t d = 0; d < dim; ++d) to[d * step] = static_cast<int8_t>(__builtin_rintf(x[d] * inverse));
    return largest / 127;
}

inline void store(const HeadCache& cache, size_t position, const float* key, const float* value) {
    if (cache.key_planes.upper != nullptr) position %= RECENT;
    const size_t dim = cache.dim, to_key = position / GROUP * dim * GROUP + position % GROUP, to_value = position * dim;
    if (cache.key_scales == nullptr) {
        float *keys = static_cast<float*>(cache.keys) + to_key, *values = static_cast<float*>(cache.values) + to_value;
        for (size_t d = 0; d < dim; ++d) keys[d * GROUP] = key[d], values[d] = value[d];
    } else {
        cache.key_scales[position] = quantize(key, dim, static_cast<int8_t*>(cache.keys) + to_key, GROUP);
        cache.value_scales[position] = quantize(value, dim, static_cast<int8_t*>(cache.values) + to_value, 1);
    }
}

// Half a byte of a plane: number i of it, in groups of 2 * GROUP.
inline unsigned half_at(const uint8_t* plane, size_t i) {
    return plane[i / (2 * GROUP) * GROUP + i % GROUP] >> (i / GROUP % 2 * 4) & 0x0f;
}
inline void put_half(uint8_t* plane, size_t i, unsigned half) {
    uint8_t& byte = plane[i / (2 * GROUP) * GROUP + i % GROUP];
    byte = i / GROUP % 2 == 0 ? (byte & 0xf0) | half : (byte & 0x0f) | half << 4;
}

// Where numbers of a block stand: the `n`th of those under scale `s`, among floats and in planes.
struct KeyPlaces {
    static size_t scales(size_t dim) { return dim; }
    static size_t numbers(size_t) { return BLOCK; }
    static size_t of_float(size_t dim, size_t s, size_t n) { return (n / GROUP * dim + s) * GROUP + n % GROUP; }
    static size_t of_half(size_t dim, size_t s, size_t n) { return (n / GROUP * (dim / 2) + s / 2) * 2 * GROUP + n % GROUP * 2 + s % 2; }
};
struct ValuePlaces {
    static size_t scales(size_t) { return BLOCK; }
    static size_t numbers(size_t dim) { return dim; }
    static size_t of_float(size_t dim, size_t s, size_t n) { return s * dim + n; }
    static size_t of_half(size_t dim, size_t s, size_t n) {
        return (s % (BLOCK / 2) * (dim / GROUP) + n / GROUP) * 2 * GROUP + n % GROUP * 2 + s / (BLOCK / 2);
    }
};

template <class Places>
void into_planes(const float* x, const Planes& planes, size_t dim) {
    const size_t numbers = Places::numbers(dim);
    for (size_t s = 0; s < Places::scales(dim); ++s) {
        const auto number = [&](size_t n) { return x[Places::of_float(dim, s, n)]; };
        float least = number(0), most = number(0);
        for (size_t n = 1; n < numbers; ++n) least = number(n) < least ? number(n) : least, most = number(n) > most ? number(n) : most;
        const float inverse = most > least ? STEPS / (most - least) : 0;
        planes.scales[s] = (most - least) / STEPS;
        planes.scales[s + scales_of_block(dim) / 2] = least;
        for (size_t n = 0; n < numbers; ++n) {
            const unsigned code = LEAST_CODE + static_cast<unsigned>(__builtin_rintf((number(n) - least) * inverse));
            put_half(planes.upper, Places::of_half(dim, s, n), code >> 4);
            put_half(planes.lower, Places::of_half(dim, s, n), code & 0x0f);
        }
    }
}

template <class Places>
void from_planes(const Planes& planes, size_t dim, float* x) {
    for (size_t s = 0; s < Places::scales(dim); ++s)
        for (size_t n = 0; n < Places::numbers(dim); ++n) {
            const size_t at = Places::of_half(dim, s, n);
            const int code = half_at(planes.upper, at) << 4 | half_at(planes.lower, at);
            const float least = planes.scales[s + scales_of_block(dim) / 2];
            x[Places::of_float(dim, s, n)] = least + planes.scales[s] * static_cast<float>(code - LEAST_CODE);
        }
}

inline void settle(const HeadCache& cache, Range rows) {
    if (cache.key_planes.upper == nullptr) return;
    const size_t dim = cache.dim, last = (rows.end - 1) / BLOCK;
    const auto recent = [&](void* floats, size_t block) { return static_cast<float*>(floats) + block * BLOCK % RECENT * dim; };
    for (size_t block = exact_from(rows.begin) / BLOCK; block <= last; ++block) {
        int32_t& there = cache.recent[block % (RECENT / BLOCK)];
        if (there == static_cast<int32_t>(block + 1)) continue;
        there = static_cast<int32_t>(block + 1);
        if (block * BLOCK >= rows.begin) continue;  // nothing of it is kept
        from_planes<KeyPlaces>(planes_of(cache.key_planes, block, dim), dim, recent(cache.keys, block));
        from_planes<ValuePlaces>(planes_of(cache.value_planes, block, dim), dim, recent(cache.values, block));
    }
    // the first row of a block makes the one before the last old; all rows look at it in the planes from then on
    if (last < 2 || last * BLOCK < rows.begin) return;
    into_planes<KeyPlaces>(recent(cache.keys, last - 2), planes_of(cache.key_planes, last - 2, dim), dim);
    into_planes<ValuePlaces>(recent(cache.values, last - 2), planes_of(cache.value_planes, last - 2, dim), dim);
}

}  // namespace
}  // namespace quasar
