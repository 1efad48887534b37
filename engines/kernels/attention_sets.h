// What the sets of instructions share. Included by the file of each, whose compiler options differ: nothing here may be seen by
// the linker, or it could take the copy that the processor cannot run.
//
// A set gives vectors of LANES floats, and ROWS, how many rows of queries its registers have room for.
#pragma once

#include <immintrin.h>

#include <vector>

#include "attention_code.h"

namespace quasar {
namespace {

constexpr size_t LINE = 64;
constexpr float NOTHING = -1e30f;  // the largest of no scores: finite, so that differences are numbers

inline size_t least(size_t a, size_t b) { return a < b ? a : b; }

// e^x for x <= 0, and exactly 0 below -87: Cephes' polynomial, 1 ulp.
template <class Set>
typename Set::Vector exponential(typename Set::Vector x) {
    using Vector = typename Set::Vector;
    const Vector bounded = Set::largest(x, Set::all(-87.0f));
    const Vector power = Set::nearest(bounded * Set::all(1.44269504f));
    Vector rest = Set::multiply_add(power, Set::all(-0.693359375f), bounded);
    rest = Set::multiply_add(power, Set::all(2.12194440e-4f), rest);
    Vector sum = Set::all(1.9875691500e-4f);
    for (float coefficient : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f, 1.0f, 1.0f})
        sum = Set::multiply_add(sum, rest, Set::all(coefficient));
    return Set::zero_below(x, -87.0f, Set::times_power(sum, power));
}

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
            const typename Set::Vector query = Set::all(queries[d * Set::ROWS + r]);
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

// One row of a block: scores become weights, relative to the largest so far; gives what the sums so far are to be multiplied by.
template <class Set>
float soften(float* scores, const float* key_scales, const float* value_scales, size_t count, Range visible, float* largest,
             float* total) {
    using Vector = typename Set::Vector;
    constexpr size_t LANES = Set::LANES;
    if (key_scales != nullptr)
        for (size_t c = 0; c < count; ++c) scores[c] *= key_scales[c];
    for (size_t c = 0; c < visible.begin; ++c) scores[c] = -__builtin_inff();
    for (size_t c = visible.end; c < BLOCK; ++c) scores[c] = -__builtin_inff();
    Vector high = Set::all(*largest);
    for (size_t c = 0; c < BLOCK; c += LANES) high = Set::largest(Set::load(scores + c), high);
    const float now = Set::largest_lane(high);
    Vector sum = Set::all(0);
    for (size_t c = 0; c < BLOCK; c += LANES) {
        const Vector weight = exponential<Set>(Set::load(scores + c) - Set::all(now));
        sum = sum + weight;
        Set::store(scores + c, weight);
    }
    const float factor = Set::first(exponential<Set>(Set::all(*largest - now)));
    *total = *total * factor + Set::sum(sum);
    *largest = now;
    if (value_scales != nullptr)
        for (size_t c = 0; c < count; ++c) scores[c] *= value_scales[c];
    return factor;
}

// A block of at most BLOCK positions from `first` on, for R rows.
template <class Set, int R, class Number>
void attend_block(const float* queries, const Range* visible, const HeadCache& cache, size_t first, size_t count,
                  const Softmax& result) {
    constexpr int NARROW = GROUP / Set::LANES;
    constexpr int WIDE = R * 2 * NARROW <= Set::SUMS ? 2 * NARROW : NARROW;
    constexpr int VALUES = R * 4 <= Set::SUMS ? 4 : R * 2 <= Set::SUMS ? 2 : 1;
    const size_t dim = cache.dim;
    const Number* keys = static_cast<const Number*>(cache.keys) + first * dim;
    const Number* values = static_cast<const Number*>(cache.values) + first * dim;
    alignas(64) float scores[R * BLOCK];
    size_t c = 0;
    for (; c + WIDE * Set::LANES <= (count + GROUP - 1) / GROUP * GROUP; c += WIDE * Set::LANES)
        score<Set, R, WIDE>(queries, keys + c * dim, dim, scores + c);
    for (; c < count; c += GROUP) score<Set, R, NARROW>(queries, keys + c * dim, dim, scores + c);
    for (int r = 0; r < R; ++r) {
        const Range seen{visible[r].begin > first ? least(visible[r].begin - first, BLOCK) : 0,
                         visible[r].end > first ? least(visible[r].end - first, count) : 0};
        const float factor = soften<Set>(scores + r * BLOCK, cache.key_scales == nullptr ? nullptr : cache.key_scales + first,
                                         cache.value_scales == nullptr ? nullptr : cache.value_scales + first, count, seen,
                                         result.largest + r, result.totals + r);
        if (factor != 1)
            for (size_t d = 0; d < dim; ++d) result.sums[r * dim + d] *= factor;
    }
    size_t d = 0;
    for (; d + VALUES * Set::LANES <= dim; d += VALUES * Set::LANES)
        add_values<Set, R, VALUES>(scores, values + d, count, dim, result.sums + d);
    for (; d < dim; d += Set::LANES) add_values<Set, R, 1>(scores, values + d, count, dim, result.sums + d);
}

template <class Set, int ROWS, class Number>
void attend_rows(size_t rows, const float* queries, const Range* visible, const HeadCache& cache, size_t first, size_t count,
                 const Softmax& result) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS)
            attend_block<Set, ROWS, Number>(queries, visible, cache, first, count, result);
        else
            attend_rows<Set, ROWS - 1, Number>(rows, queries, visible, cache, first, count, result);
    }
}

template <class Set, class Number>
void attend_split(const Queries& queries, const HeadCache& cache, Range split, const Softmax& result) {
    constexpr size_t ROWS = Set::ROWS;
    const size_t dim = cache.dim, tiles = (queries.rows + ROWS - 1) / ROWS;
    // [tiles, dim, ROWS]: what a step of the inner loop reads lies side by side
    thread_local std::vector<float> turned;
    turned.resize(tiles * dim * ROWS);
    const auto row_of = [&](size_t tile) { return tile * queries.rows / tiles; };  // tiles are of equal size, so that none is narrow
    for (size_t tile = 0; tile < tiles; ++tile)
        for (size_t row = row_of(tile); row < row_of(tile + 1); ++row)
            for (size_t d = 0; d < dim; ++d)
                turned[(tile * dim + d) * ROWS + row - row_of(tile)] = queries.values[row * dim + d];
    for (size_t i = 0; i < queries.rows * dim; ++i) result.sums[i] = 0;
    for (size_t row = 0; row < queries.rows; ++row) result.totals[row] = 0, result.largest[row] = NOTHING;
    for (size_t first = split.begin; first < split.end; first += BLOCK)
        for (size_t tile = 0; tile < tiles; ++tile) {
            const size_t row = row_of(tile), rows = row_of(tile + 1) - row;
            const size_t end = least(split.end, queries.visible[row + rows - 1].end);
            if (first >= end || queries.visible[row].begin >= first + BLOCK) continue;
            attend_rows<Set, Set::ROWS, Number>(rows, turned.data() + tile * dim * ROWS, queries.visible + row, cache, first,
                                                least(BLOCK, end - first),
                                                {result.sums + row * dim, result.totals + row, result.largest + row});
        }
}

template <class Set>
void attend(const Queries& queries, const HeadCache& cache, Range split, const Softmax& result) {
    if (cache.key_scales == nullptr)
        attend_split<Set, float>(queries, cache, split, result);
    else
        attend_split<Set, int8_t>(queries, cache, split, result);
}

template <class Set>
void merge(const Softmax& result, const Softmax& later, size_t rows, size_t dim) {
    for (size_t row = 0; row < rows; ++row) {
        const float high = result.largest[row] > later.largest[row] ? result.largest[row] : later.largest[row];
        const float old = Set::first(exponential<Set>(Set::all(result.largest[row] - high)));
        const float added = Set::first(exponential<Set>(Set::all(later.largest[row] - high)));
        for (size_t i = row * dim; i < (row + 1) * dim; ++i) result.sums[i] = result.sums[i] * old + later.sums[i] * added;
        result.totals[row] = result.totals[row] * old + later.totals[row] * added;
        result.largest[row] = high;
    }
}

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
    const size_t dim = cache.dim, to_key = position / GROUP * dim * GROUP + position % GROUP, to_value = position * dim;
    if (cache.key_scales == nullptr) {
        float *keys = static_cast<float*>(cache.keys) + to_key, *values = static_cast<float*>(cache.values) + to_value;
        for (size_t d = 0; d < dim; ++d) keys[d * GROUP] = key[d], values[d] = value[d];
    } else {
        cache.key_scales[position] = quantize(key, dim, static_cast<int8_t*>(cache.keys) + to_key, GROUP);
        cache.value_scales[position] = quantize(value, dim, static_cast<int8_t*>(cache.values) + to_value, 1);
    }
}

}  // namespace
}  // namespace quasar
