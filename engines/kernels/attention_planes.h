// Blocks of planes, see `Planes`. Scores and sums are of integers, exactly: queries and weights are rounded to 16 bits of the largest
// of their row, and a multiplication takes two dimensions, or two positions, at once. Included where `attention_sets.h` is.
#pragma once

#include <immintrin.h>

#include "attention_tile.h"

namespace quasar {
namespace {

constexpr float MOST = 32767;  // of 16 bits; 256 products with 8 bits stay below 2^31

// The upper halves alone: a number of 0 to 15 stands for least + step * (SHIFT + FACTOR * it).
template <class Set>
struct UpperHalves {
    static constexpr float FACTOR = 16, SHIFT = 0;
    const uint8_t* upper;

    explicit UpperHalves(const Planes& block) : upper(block.upper) {}
    typename Set::Integers load(size_t group, int part) const { return Set::upper_halves(upper + group * GROUP, part); }
    void fetch(size_t group) const { _mm_prefetch(reinterpret_cast<const char*>(upper + group * GROUP), _MM_HINT_T0); }
};

// Both: 8 to 248.
template <class Set>
struct BothHalves {
    static constexpr float FACTOR = 1, SHIFT = -8;
    const uint8_t *upper, *lower;

    explicit BothHalves(const Planes& block) : upper(block.upper), lower(block.lower) {}
    typename Set::Integers load(size_t group, int part) const {
        return Set::both_halves(upper + group * GROUP, lower + group * GROUP, part);
    }
    void fetch(size_t group) const {
        for (const uint8_t* plane : {upper, lower}) _mm_prefetch(reinterpret_cast<const char*>(plane + group * GROUP), _MM_HINT_T0);
    }
};

// What is multiplied in a step: a pair of each row, and groups of numbers.
struct Pairs {
    const int32_t* at;
    size_t row, step;  // how far the next one is
};
struct Groups {
    size_t first;
    size_t step, vector;  // how far the next one is
    size_t fetch;         // how far ahead memory is asked for
};

// Sums of products of integers, for R rows and as many vectors.
template <class Set, int R, int VECTORS, class Halves>
void add_products(const Pairs& pairs, const Halves& numbers, const Groups& groups, size_t steps,
                  typename Set::Integers (&sums)[R][VECTORS]) {
    constexpr int PARTS = GROUP / Set::LANES;
#pragma GCC unroll 32
    for (int i = 0; i < R * VECTORS; ++i) sums[i / VECTORS][i % VECTORS] = Set::integers(0);
    for (size_t step = 0; step < steps; ++step) {
        typename Set::Integers some[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) {
            const size_t group = groups.first + step * groups.step + v / PARTS * groups.vector;
            some[v] = numbers.load(group, v % PARTS);
            if (v % PARTS == 0) numbers.fetch(group + groups.fetch);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const typename Set::Integers pair = Set::integers(pairs.at[r * pairs.row + step * pairs.step]);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) sums[r][v] = Set::add_products(sums[r][v], pair, some[v]);
        }
    }
}

// A block of a cache, and what the queries of a tile are to its keys: these have a scale for each dimension.
template <class Set, class Halves>
struct PlanesBlock {
    Halves keys, values;
    const float *steps, *lowest;  // of values, [BLOCK]
    const int32_t* pairs;         // queries [dim / 2, LANES], rounded: two dimensions of 16 bits
    float units[Set::LANES];      // of the rounded queries
    float offsets[Set::LANES];    // of scores

    // Rows from `row` of the tile on are asked for; `integers` [dim / 2, LANES] get their queries.
    PlanesBlock(const Planes& of_keys, const Planes& of_values, const Tile& tile, int32_t* integers, size_t row)
        : keys(of_keys),
          values(of_values),
          steps(of_values.scales),
          lowest(of_values.scales + scales_of_block(tile.dim) / 2),
          pairs(integers + row) {
        using Vector = typename Set::Vector;
        constexpr size_t LANES = Set::LANES;
        const float *key_steps = of_keys.scales, *key_lowest = key_steps + scales_of_block(tile.dim) / 2;
        const auto query = [&](size_t d) { return Set::load(tile.queries + d * LANES); };
        // of even and of odd dimensions, which need not wait for each other
        Vector offset[2] = {Set::all(0), Set::all(0)}, sum[2] = {Set::all(0), Set::all(0)}, largest[2] = {Set::all(0), Set::all(0)};
        for (size_t d = 0; d < tile.dim; d += 2)
            for (size_t odd : {0, 1}) {
                const Vector scaled = query(d + odd) * Set::all(key_steps[d + odd]);
                offset[odd] = Set::multiply_add(query(d + odd), Set::all(key_lowest[d + odd]), offset[odd]);
                sum[odd] = sum[odd] + scaled;
                largest[odd] = Set::largest(largest[odd], Set::magnitude(scaled));
            }
        float most[LANES], inverse[LANES], shifted[LANES];
        Set::store(most, Set::largest(largest[0], largest[1]));
        Set::store(shifted, Set::multiply_add(sum[0] + sum[1], Set::all(Halves::SHIFT), offset[0] + offset[1]));
        for (size_t r = 0; r < LANES; ++r) inverse[r] = most[r] > 0 ? MOST / most[r] : 0;
        for (size_t r = row; r < LANES; ++r) units[r - row] = most[r] / MOST * Halves::FACTOR, offsets[r - row] = shifted[r];
        const Vector scale = Set::load(inverse);
        for (size_t d = 0; d < tile.dim; d += 2)
            Set::store_pairs(integers + d / 2 * LANES, query(d) * Set::all(key_steps[d]) * scale,
                             query(d + 1) * Set::all(key_steps[d + 1]) * scale);
    }

    // adds the block to the softmax of R rows
    template <int R>
    void attend(const Tile& tile) const {
        constexpr int NARROW = GROUP / Set::LANES;
        constexpr int WIDE = R * 2 * NARROW <= Set::SUMS ? 2 * NARROW : NARROW;
        const size_t dim = tile.dim;
        alignas(64) float scores[R * BLOCK];
        for (size_t c = 0; c < BLOCK; c += WIDE * Set::LANES) score<R, WIDE>(tile, c, scores);
        int32_t weights[R * BLOCK / 2];
        float unit[R];
        for (int r = 0; r < R; ++r) {
            float *row = scores + r * BLOCK, *sums = tile.result.sums + r * dim;
            const float factor = soften<Set>(row, tile, r), offset = scale_weights(row, weights + r * BLOCK / 2, unit + r);
            for (size_t d = 0; d < dim; ++d) sums[d] = sums[d] * factor + offset;
        }
        size_t d = 0;
        for (; d + WIDE * Set::LANES <= dim; d += WIDE * Set::LANES) add_values<R, WIDE>(tile, d, weights, unit);
        for (; d < dim; d += GROUP) add_values<R, NARROW>(tile, d, weights, unit);
    }

private:
    // Scores of R rows at VECTORS * LANES positions.
    template <int R, int VECTORS>
    void score(const Tile& tile, size_t c, float* scores) const {
        const size_t steps = tile.dim / 2;
        typename Set::Integers sums[R][VECTORS];
        add_products<Set, R, VECTORS>({pairs, 1, Set::LANES}, keys, {c / GROUP * steps, 1, steps, BLOCK / GROUP * steps}, steps, sums);
#pragma GCC unroll 32
        for (int i = 0; i < R * VECTORS; ++i) {
            const int r = i / VECTORS, v = i % VECTORS;
            const typename Set::Vector score = Set::floats(sums[r][v]);
            Set::store(scores + r * BLOCK + c + v * Set::LANES, Set::multiply_add(score, Set::all(units[r]), Set::all(offsets[r])));
        }
    }

    // Adds weighted values to VECTORS * LANES dimensions of the sums of R rows.
    template <int R, int VECTORS>
    void add_values(const Tile& tile, size_t d, const int32_t* weights, const float* unit) const {
        const size_t groups = tile.dim / GROUP;
        typename Set::Integers sums[R][VECTORS];
        add_products<Set, R, VECTORS>({weights, BLOCK / 2, 1}, values, {d / GROUP, groups, 1, BLOCK / 2 * groups}, BLOCK / 2, sums);
#pragma GCC unroll 32
        for (int i = 0; i < R * VECTORS; ++i) {
            const int r = i / VECTORS, v = i % VECTORS;
            float* to = tile.result.sums + r * tile.dim + d + v * Set::LANES;
            Set::store(to, Set::multiply_add(Set::floats(sums[r][v]), Set::all(unit[r]), Set::load(to)));
        }
    }

    // Pairs of weights for the numbers of the block, in units of `unit`; gives what belongs to each dimension besides.
    float scale_weights(const float* weights, int32_t* rounded, float* unit) const {
        using Vector = typename Set::Vector;
        Vector sum = Set::all(0), largest = Set::all(0);
        for (size_t c = 0; c < BLOCK; c += Set::LANES) {
            const Vector weight = Set::load(weights + c), step = Set::load(steps + c);
            sum = Set::multiply_add(weight, Set::multiply_add(step, Set::all(Halves::SHIFT), Set::load(lowest + c)), sum);
            largest = Set::largest(largest, weight * step);
        }
        const float most = Set::largest_lane(largest), inverse = most > 0 ? MOST / most : 0;
        const auto scaled = [&](size_t c) { return Set::load(weights + c) * Set::load(steps + c) * Set::all(inverse); };
        for (size_t c = 0; c < BLOCK / 2; c += Set::LANES) Set::store_pairs(rounded + c, scaled(c), scaled(c + BLOCK / 2));
        *unit = most / MOST * Halves::FACTOR;
        return Set::sum(sum);
    }
};

}  // namespace
}  // namespace quasar
