// A tile of attention: some rows and a block of positions, and the softmax between scores and values. Included where
// `attention_sets.h` is.
#pragma once

#include <immintrin.h>

#include "attention_code.h"

namespace quasar {
namespace {

constexpr float NOTHING = -1e30f;  // the largest of no scores: finite, so that differences are numbers

inline size_t least(size_t a, size_t b) { return a < b ? a : b; }

// Some rows, and a block of positions that they look at.
struct Tile {
    const float* queries;  // [dim, LANES]: what a step of the inner loop reads lies side by side
    const Range* visible;
    size_t rows;
    size_t first;  // position of the block
    size_t count;  // positions of it that any row looks at
    Softmax result;
    size_t dim;

    Tile part(size_t row, size_t rows_of_part) const {
        return {queries + row, visible + row, rows_of_part, first, least(count, visible[row + rows_of_part - 1].end - first),
                {result.sums + row * dim, result.totals + row, result.largest + row}, dim};
    }
};

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

// Scores [BLOCK] of a row become weights, relative to the largest so far; gives what the sums so far are to be multiplied by.
template <class Set>
float soften(float* scores, const Tile& tile, size_t row) {
    using Vector = typename Set::Vector;
    constexpr size_t LANES = Set::LANES;
    const Range visible = tile.visible[row];
    const size_t begin = visible.begin > tile.first ? least(visible.begin - tile.first, BLOCK) : 0;
    const size_t end = visible.end > tile.first ? least(visible.end - tile.first, tile.count) : 0;
    float &largest = tile.result.largest[row], &total = tile.result.totals[row];
    for (size_t c = 0; c < begin; ++c) scores[c] = -__builtin_inff();
    for (size_t c = end; c < BLOCK; ++c) scores[c] = -__builtin_inff();
    Vector high = Set::all(largest);
    for (size_t c = 0; c < BLOCK; c += LANES) high = Set::largest(Set::load(scores + c), high);
    const float now = Set::largest_lane(high);
    Vector sum = Set::all(0);
    for (size_t c = 0; c < BLOCK; c += LANES) {
        const Vector weight = exponential<Set>(Set::load(scores + c) - Set::all(now));
        sum = sum + weight;
        Set::store(scores + c, weight);
    }
    const float factor = Set::first(exponential<Set>(Set::all(largest - now)));
    total = total * factor + Set::sum(sum);
    largest = now;
    return factor;
}

}  // namespace
}  // namespace quasar
