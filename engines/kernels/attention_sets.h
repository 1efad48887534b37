// What the sets of instructions share: attention over blocks of positions. Included by the file of each, whose compiler options
// differ: nothing here may be seen by the linker, or it could take the copy that the processor cannot run.
//
// A set gives vectors of LANES floats, and ROWS, how many rows of queries its registers have room for.
#pragma once

#include <immintrin.h>

#include <vector>

#include "attention_code.h"
#include "attention_plain.h"
#include "attention_planes.h"
#include "attention_store.h"

namespace quasar {
namespace {

// All rows of a tile; a block has code for each number of them.
template <class Set, int ROWS, class Block>
void attend_rows(const Tile& tile, const Block& block) {
    if constexpr (ROWS > 0) {
        if (tile.rows == ROWS)
            block.template attend<ROWS>(tile);
        else
            attend_rows<Set, ROWS - 1>(tile, block);
    }
}

// A block of planes, or of floats for the rows to which it is new.
template <class Set, class Halves>
void attend_recent(const Tile& tile, const HeadCache& cache) {
    size_t exact = 0;
    while (exact < tile.rows && exact_from(tile.visible[exact].end - 1) <= tile.first) ++exact;
    if (exact > 0) attend_rows<Set, Set::ROWS>(tile.part(0, exact), PlainBlock<Set, float>(cache, tile.first % RECENT));
    if (exact == tile.rows) return;
    thread_local std::vector<int32_t> integers;
    integers.resize(tile.dim / 2 * Set::LANES);
    const auto planes = [&](const Planes& all) { return planes_of(all, tile.first / BLOCK, tile.dim); };
    const PlanesBlock<Set, Halves> block(planes(cache.key_planes), planes(cache.value_planes), tile, integers.data(), exact);
    attend_rows<Set, Set::ROWS>(tile.part(exact, tile.rows - exact), block);
}

template <class Set>
void attend_tile(const Tile& tile, const HeadCache& cache) {
    if (cache.key_planes.upper != nullptr)
        cache.coarse ? attend_recent<Set, UpperHalves<Set>>(tile, cache) : attend_recent<Set, BothHalves<Set>>(tile, cache);
    else if (cache.key_scales != nullptr)
        attend_rows<Set, Set::ROWS>(tile, PlainBlock<Set, int8_t>(cache, tile.first));
    else
        attend_rows<Set, Set::ROWS>(tile, PlainBlock<Set, float>(cache, tile.first));
}

template <class Set>
void attend(const Queries& queries, const HeadCache& cache, Range split, const Softmax& result) {
    constexpr size_t ROWS = Set::ROWS, LANES = Set::LANES;
    const size_t dim = cache.dim, tiles = (queries.rows + ROWS - 1) / ROWS;
    thread_local std::vector<float> turned;
    turned.resize(tiles * dim * LANES);
    const auto row_of = [&](size_t tile) { return tile * queries.rows / tiles; };  // tiles are of equal size, so that none is narrow
    for (size_t tile = 0; tile < tiles; ++tile)
        for (size_t row = row_of(tile); row < row_of(tile + 1); ++row)
            for (size_t d = 0; d < dim; ++d)
                turned[(tile * dim + d) * LANES + row - row_of(tile)] = queries.values[row * dim + d];
    for (size_t i = 0; i < queries.rows * dim; ++i) result.sums[i] = 0;
    for (size_t row = 0; row < queries.rows; ++row) result.totals[row] = 0, result.largest[row] = NOTHING;
    for (size_t first = split.begin; first < split.end; first += BLOCK)
        for (size_t tile = 0; tile < tiles; ++tile) {
            const size_t row = row_of(tile), rows = row_of(tile + 1) - row;
            const size_t end = least(split.end, queries.visible[row + rows - 1].end);
            if (first >= end || queries.visible[row].begin >= first + BLOCK) continue;
            attend_tile<Set>({turned.data() + tile * dim * LANES, queries.visible + row, rows, first, least(BLOCK, end - first),
                              {result.sums + row * dim, result.totals + row, result.largest + row}, dim}, cache);
        }
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

}  // namespace
}  // namespace quasar
