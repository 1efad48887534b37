// What the sets of instructions share. Included by the file of each, whose compiler options differ: nothing here may be seen by
// the linker, or it could take the copy that the processor cannot run.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "linear_code.h"

namespace quasar {
namespace {

constexpr size_t LINE = 64;

// Products of `rows` rows, which is at most ROWS, and COLUMNS columns.
template <class Set, int ROWS, int COLUMNS>
void multiply_tile(size_t rows, const int8_t* x, size_t stride, const int8_t* w, size_t depth, int32_t* products) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS)
            Set::template multiply<ROWS, COLUMNS>(x, stride, w, depth, products);
        else
            multiply_tile<Set, ROWS - 1, COLUMNS>(rows, x, stride, w, depth, products);
    }
}

template <class Set>
void multiply(const Integers& x, const Weights& w, const int8_t* next, size_t next_bytes, int32_t* products) {
    const size_t parts = (x.rows + Set::ROWS - 1) / Set::ROWS;  // of equal size, so that none is a lone row
    const size_t steps = parts * ((w.columns + Set::COLUMNS - 1) / Set::COLUMNS), lines = (next_bytes + LINE - 1) / LINE;
    size_t step = 0, fetched = 0;
    for (size_t part = 0; part < parts; ++part) {
        const size_t row = part * x.rows / parts, rows = (part + 1) * x.rows / parts - row;
        const int8_t* first = x.values + row * x.stride;
        for (size_t column = 0; column < w.columns; column += Set::COLUMNS) {
            for (const size_t until = ++step * lines / steps; fetched < until; ++fetched)
                _mm_prefetch(reinterpret_cast<const char*>(next + fetched * LINE), _MM_HINT_T1);
            int32_t* out = products + row * MOST_COLUMNS + column;
            const int8_t* weights = w.values + column * w.depth;
            if (w.columns - column >= Set::COLUMNS)
                multiply_tile<Set, Set::ROWS, Set::COLUMNS>(rows, first, x.stride, weights, w.depth, out);
            else
                for (size_t i = 0; i < w.columns - column; ++i)
                    multiply_tile<Set, Set::ROWS, 1>(rows, first, x.stride, weights + i * w.depth, w.depth, out + i);
        }
    }
    if constexpr (Set::EXCESS != 0)
        for (size_t row = 0; row < x.rows; ++row)
            for (size_t column = 0; column < w.columns; ++column) products[row * MOST_COLUMNS + column] -= Set::EXCESS * x.sums[row];
}

inline void finish(const int32_t* products, const int32_t* rest, const Scaling& scaling, size_t columns, float* y) {
    if (rest == nullptr)
        for (size_t i = 0; i < columns; ++i) y[i] = static_cast<float>(products[i]) * scaling.columns[i] * scaling.row;
    else
        for (size_t i = 0; i < columns; ++i) {
            const float second = static_cast<float>(rest[i]) * scaling.columns[i] * scaling.rest;
            y[i] = (static_cast<float>(products[i]) * scaling.columns[i] + second) * scaling.row;
        }
    if (scaling.bias != nullptr)
        for (size_t i = 0; i < columns; ++i) y[i] += scaling.bias[i];
}

}  // namespace
}  // namespace quasar
