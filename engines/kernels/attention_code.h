// What a set of instructions has to offer, so that attention can be made of it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quasar {

constexpr size_t GROUP = 16;  // positions whose keys lie side by side, dimension by dimension
constexpr size_t BLOCK = 64;  // positions that are looked at together
constexpr size_t SPLIT = 512;  // positions whose result is complete in itself: threads share a long text by them

// The cache of one KV head of one sequence: float, or int8 where there are scales.
struct HeadCache {
    void* keys;           // [length / GROUP, dim, GROUP]
    void* values;         // [length, dim]
    float* key_scales;    // [length], or null
    float* value_scales;  // [length], or null
    size_t dim;           // a multiple of GROUP
};

// Positions that a query looks at.
struct Range {
    size_t begin;
    size_t end;
};

// Rows of one KV head.
struct Queries {
    const float* values;   // [rows, dim]: rotated, and scaled
    const Range* visible;  // [rows]: begins and ends never fall from row to row
    size_t rows;
};

// Softmax over some of the positions: of each row the weighted sum of values, the total of weights, and the largest score, to which
// weights are relative.
struct Softmax {
    float* sums;     // [rows, dim]
    float* totals;   // [rows]
    float* largest;  // [rows]
};

// The code for a set of instructions. Bits of a row's result depend on nothing but the row.
struct AttentionCode {
    // a head, rotated by `cos` and `sin` [dim / 2] where these are not null, times `scale`
    void (*rotate)(const float* x, const float* cos, const float* sin, size_t dim, float scale, float* rotated);
    // write keys and values of a position into the cache
    void (*store)(const HeadCache& cache, size_t position, const float* key, const float* value);
    // softmax over positions of a split; it begins with a block
    void (*attend)(const Queries& queries, const HeadCache& cache, Range split, const Softmax& result);
    // what two softmaxes are together; the later positions are those of `later`
    void (*merge)(const Softmax& result, const Softmax& later, size_t rows, size_t dim);
};

extern const AttentionCode ATTENTION_AVX2, ATTENTION_AVX512;

}  // namespace quasar
