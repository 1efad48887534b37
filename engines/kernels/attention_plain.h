// Blocks of floats, and of int8, which become floats in registers. Included where `attention_sets.h` is.
#pragma once

#include <immintrin.h>

#include "attention_tile.h"

namespace quasar {
namespace {

constexpr size_t LINE = 64;

// Scores of R rows at VECTORS * LANES positions, keys of whole groups.
template <class Set, int R, int VECTORS, class Number>
void score(const float* queries, const Number* keys, size_t dim, float* scores) {
    constexpr size_t LANES = Set::LANES;
    typename Set::Vector sums[R][VECTORS];
#pragma GCC unroll 32
    for (int i = 0; i < R * VECTORS; ++i) sums[i / VECTORS][i % VECTORS] = Set::all(0);
    for (size_t d = 0; d < dim; ++d) {
        typename Set::Vector some[VECTORS];
#pragma GCC unroll 8
        for (size_t v = 0; v < VECTORS; ++v) {
            const Number* from = keys + (v * LANES / GROUP * dim + d) * GROUP + v * LANES % GROUP;
            some[v] = Set::load(from);
            if (v * LANES % GROUP == 0) _mm_prefetch(reinterpret_cast<const char*>(from + BLOCK * dim), _MM_HINT_T0);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const typename Set::Vector query = Set::all(queries[d * LANES + r]);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) sums[r][v] = Set::multiply_add(query, some[v], sums[r][v]);
        }
    }
#pragma GCC unroll 32
    for (int i = 0; i < R * VECTORS; ++i) Set::store(scores + i / VECTORS * BLOCK + i % VECTORS * LANES, sums[i / VECTORS][i % VECTORS]);
}

// Adds weighted values to VECTORS * LANES dimensions of the sums of R rows.
template <class Set, int R, int VECTORS, class Number>
void add_values(const float* weights, const Number* values, size_t count, size_t dim, float* sums) {
    constexpr size_t LANES = Set::LANES;
    typename Set::Vector total[R][VECTORS];
#pragma GCC unroll 32
    for (int i = 0; i < R * VECTORS; ++i) total[i / VECTORS][i % VECTORS] = Set::load(sums + i / VECTORS * dim + i % VECTORS * LANES);
    for (size_t c = 0; c < count; ++c) {
        typename Set::Vector some[VECTORS];
#pragma GCC unroll 8
        for (size_t v = 0; v < VECTORS; ++v) some[v] = Set::load(values + c * dim + v * LANES);
#pragma GCC unroll 8
        for (size_t ahead = 0; ahead < VECTORS * LANES; ahead += LINE / sizeof(Number))
            _mm_prefetch(reinterpret_cast<const char*>(values + (c + BLOCK) * dim + ahead), _MM_HINT_T0);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const typename Set::Vector weight = Set::all(weights[r * BLOCK + c]);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) total[r][v] = Set::multiply_add(weight, some[v], total[r][v]);
        }
    }
#pragma GCC unroll 32
    for (int i = 0; i < R * VECTORS; ++i) Set::store(sums + i / VECTORS * dim + i % VECTORS * LANES, total[i / VECTORS][i % VECTORS]);
}

// A block of a cache: floats, or int8 with a scale for each position.
template <class Set, class Number>
struct PlainBlock {
    const Number *keys, *values;
    const float *key_scales, *value_scales;

    PlainBlock(const HeadCache& cache, size_t first)
        : keys(static_cast<const Number*>(cache.keys) + first * cache.dim),
          values(static_cast<const Number*>(cache.values) + first * cache.dim),
          key_scales(cache.key_scales == nullptr ? nullptr : cache.key_scales + first),
          value_scales(cache.value_scales == nullptr ? nullptr : cache.value_scales + first) {}

    // adds the block to the softmax of R rows
    template <int R>
    void attend(const Tile& tile) const {
        constexpr int NARROW = GROUP / Set::LANES;
        constexpr int WIDE = R * 2 * NARROW <= Set::SUMS ? 2 * NARROW : NARROW;
        constexpr int VALUES = R * 4 <= Set::SUMS ? 4 : R * 2 <= Set::SUMS ? 2 : 1;
        const size_t dim = tile.dim, count = tile.count;
        alignas(64) float scores[R * BLOCK];
        size_t c = 0;
        for (; c + WIDE * Set::LANES <= (count + GROUP - 1) / GROUP * GROUP; c += WIDE * Set::LANES)
            score<Set, R, WIDE>(tile.queries, keys + c * dim, dim, scores + c);
        for (; c < count; c += GROUP) score<Set, R, NARROW>(tile.queries, keys + c * dim, dim, scores + c);
        for (int r = 0; r < R; ++r) {
            float *row = scores + r * BLOCK, *sums = tile.result.sums + r * dim;
            multiply(row, key_scales, count);
            const float factor = soften<Set>(row, tile, r);
            multiply(row, value_scales, count);
            if (factor != 1)
                for (size_t d = 0; d < dim; ++d) sums[d] *= factor;
        }
        size_t d = 0;
        for (; d + VALUES * Set::LANES <= dim; d += VALUES * Set::LANES)
            add_values<Set, R, VALUES>(scores, values + d, count, dim, tile.result.sums + d);
        for (; d < dim; d += Set::LANES) add_values<Set, R, 1>(scores, values + d, count, dim, tile.result.sums + d);
    }

private:
    static void multiply(float* numbers, const float* scales, size_t count) {
        if (scales != nullptr)
            for (size_t c = 0; c < count; ++c) numbers[c] *= scales[c];
    }
};

}  // namespace
}  // namespace quasar
