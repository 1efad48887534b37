// What a set of instructions has to offer, so that products of int8 weights can be made of it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quasar {

constexpr size_t MOST_COLUMNS = 64;  // of a stripe
constexpr size_t MOST_ROWS = 64;     // rows that share a stripe's way through the cache

// Rows of integers that stand for the activation.
struct Integers {
    int8_t* values;  // [rows, stride]; 0 from the depth to the next multiple of 64
    int32_t* sums;   // [rows]
    size_t rows;
    size_t stride;
};

struct Weights {
    const int8_t* values;  // [columns, depth]
    size_t columns;
    size_t depth;
};

// How a row's integer products become float.
struct Scaling {
    const float* columns;  // of each column: the steps of activation and weight
    float row;             // of the row
    float rest;            // of the second part of a row
    const float* bias;     // null for none
};

// The code for a set of instructions.
struct LinearCode {
    // max |x|
    float (*largest)(const float* x, size_t count);
    // x / divisor / step as integers, rounded half to even and saturated; and where asked for, what is left over of x / divisor
    void (*quantize)(const float* x, size_t count, float divisor, float step, float* left_over, int8_t* values, int32_t* sum);
    // int32 [rows, MOST_COLUMNS] products of at most MOST_ROWS rows and MOST_COLUMNS columns; `next` are fetched meanwhile
    void (*multiply)(const Integers& x, const Weights& w, const int8_t* next, size_t next_bytes, int32_t* products);
    // a row of the output; `rest` are the products of its second part, or null
    void (*finish)(const int32_t* products, const int32_t* rest, const Scaling& scaling, size_t columns, float* y);
};

extern const LinearCode LINEAR_AVX2, LINEAR_AVX512_VNNI;

}  // namespace quasar
