// What a set of instructions has to offer, so that attention can be made of it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quasar {

constexpr size_t GROUP = 16;  // positions whose keys lie side by side, dimension by dimension
constexpr size_t BLOCK = 64;  // positions that are looked at together
constexpr size_t SPLIT = 512;  // positions whose result is complete in itself: threads share a long text by them

constexpr size_t CACHE_LINE = 64;
constexpr size_t RECENT = 3 * BLOCK;  // positions that caches of planes have as floats: two blocks, and what a pass adds

// Numbers in 8 bits, cut into halves that can be read apart. A byte b stands for least + step * (b - 8), its upper half u alone for
// least + step * 16 * u. Halves lie in groups of 2 * GROUP: the lower 4 bits of GROUP bytes, then the upper 4. Numbers that are
// multiplied at once stand in pairs: of keys [length / GROUP, dim / 2, GROUP, 2], of values [length / BLOCK, BLOCK / 2, dim, 2], which
// are positions of the first and the second half of a block.
struct Planes {
    uint8_t* upper;  // null where there are none
    uint8_t* lower;
    float* scales;  // [length / BLOCK, 2, max(dim, BLOCK)]: steps and least numbers, of keys a dimension's, of values a position's
};

constexpr size_t scales_of_block(size_t dim) { return 2 * (dim > BLOCK ? dim : BLOCK); }

// The planes of a block.
inline Planes planes_of(const Planes& planes, size_t block, size_t dim) {
    const size_t bytes = block * BLOCK * dim / 2;
    return {planes.upper + bytes, planes.lower + bytes, planes.scales + block * scales_of_block(dim)};
}

// The cache of one KV head of one sequence: float; int8 where there are scales; or planes, and the newest positions in float.
struct HeadCache {
    void* keys;           // [length / GROUP, dim, GROUP]; beside planes, positions stand at their remainder by RECENT
    void* values;         // [length, dim]; the same
    float* key_scales;    // [length], or null
    float* value_scales;  // [length], or null
    size_t dim;           // a multiple of GROUP
    Planes key_planes;
    Planes value_planes;
    int32_t* recent;  // [RECENT / BLOCK], beside planes: which block of positions is there in float, counted from 1
    bool coarse;      // of planes, only the upper ones are read
};

// Positions that a query looks at.
struct Range {
    size_t begin;
    size_t end;
};

// Beside planes, the position from which on the query at `position` looks at floats: the newest BLOCK to 2 * BLOCK.
inline size_t exact_from(size_t position) { return position < BLOCK ? 0 : position / BLOCK * BLOCK - BLOCK; }

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
    // before tokens are stored at positions of `rows`, at most BLOCK: what they make old goes into planes, and what is missing of
    // the floats that they look at, because later ones were written over them and then dropped, comes back from there
    void (*settle)(const HeadCache& cache, Range rows);
    // write keys and values of a position into the cache
    void (*store)(const HeadCache& cache, size_t position, const float* key, const float* value);
    // softmax over positions of a split; it begins with a block
    void (*attend)(const Queries& queries, const HeadCache& cache, Range split, const Softmax& result);
    // what two softmaxes are together; the later positions are those of `later`
    void (*merge)(const Softmax& result, const Softmax& later, size_t rows, size_t dim);
};

extern const AttentionCode ATTENTION_AVX2, ATTENTION_AVX512;

}  // namespace quasar
