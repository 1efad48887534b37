// y = x W^T + b for int8 weights W [columns, depth], as checkpoints have them, none of them -128, and float x whose rows become int8 on the way.
//
// Weights are read once for all rows of a pass, from beginning to end: a stripe of columns is multiplied with every row while the
// next stripe comes from memory into the second-level cache. Products are exact.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace quasar {

constexpr size_t STRIPE_BYTES = 1 << 14;  // weights of a stripe; fetching further ahead is slower
constexpr size_t STRIPES = 8;             // of a task, one behind the other
constexpr size_t MOST_COLUMNS = 64;       // of a stripe
constexpr size_t MOST_ROWS = 64;          // rows that share a stripe's way through the cache
constexpr size_t MOST_DEPTH = 1 << 16;    // beyond it, sums of products would leave 32 bits

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
struct Code {
    const char* name;
    // max |x|
    float (*largest)(const float* x, size_t count);
    // x / divisor / step as integers, rounded half to even and saturated; and where asked for, what is left over of x / divisor
    void (*quantize)(const float* x, size_t count, float divisor, float step, float* left_over, int8_t* values, int32_t* sum);
    // int32 [rows, MOST_COLUMNS] products of at most MOST_ROWS rows and MOST_COLUMNS columns; `next` are fetched meanwhile
    void (*multiply)(const Integers& x, const Weights& w, const int8_t* next, size_t next_bytes, int32_t* products);
    // a row of the output; `rest` are the products of its second part, or null
    void (*finish)(const int32_t* products, const int32_t* rest, const Scaling& scaling, size_t columns, float* y);
};

extern const Code AVX2, AVX512_VNNI;

// The best code that this processor runs; null for none. QUASAR_KERNELS=avx2 asks for the lesser one.
const Code* code();

// How activations become int8.
struct Quantizer {
    float scale;   // of every activation; 0 for one of each token's own, its largest magnitude over 127
    size_t parts;  // int8 rows that stand for a token: 1, or 2, where the second is what the first left over
    float ratio;   // how many times as fine the second's steps are
};

struct LinearInputs {
    const float* x;  // [tokens, depth]
    size_t tokens;
    Weights weights;
    const float* weight_scales;  // [columns]
    const float* bias;           // [columns], or null
    float* y;                    // [tokens, columns]
};

// One product, cut into tasks: first `quantize` for each token, and then, when all are done, `multiply` for each task.
class LinearProduct {
public:
    LinearProduct(const Code& code, const Quantizer& quantizer, const LinearInputs& inputs);

    size_t tasks() const { return (in_.weights.columns + STRIPES * width_ - 1) / (STRIPES * width_); }
    void quantize(size_t token);
    void multiply(size_t task) const;

private:
    void multiply_stripe(size_t first) const;

    const Code& code_;
    const Quantizer quantizer_;
    const LinearInputs in_;
    const float step_;       // of the first part
    const size_t width_;     // columns of a stripe
    Integers rows_;          // in memory of the calling thread
    std::vector<float>& largest_;
};

}  // namespace quasar
