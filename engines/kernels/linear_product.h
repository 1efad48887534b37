// y = x W^T + b for int8 weights W [columns, depth], as checkpoints have them, none of them -128, and float x whose rows become int8
// on the way.
//
// Weights are read once for all rows of a pass, from beginning to end: a stripe of columns is multiplied with every row while the
// next stripe comes from memory into the second-level cache. Products are exact.
#pragma once

#include <vector>

#include "linear_code.h"

namespace quasar {

constexpr size_t STRIPE_BYTES = 1 << 14;  // weights of a stripe; fetching further ahead is slower
constexpr size_t STRIPES = 8;             // of a task, one behind the other
constexpr size_t MOST_DEPTH = 1 << 16;    // beyond it, sums of products would leave 32 bits

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
    LinearProduct(const LinearCode& code, const Quantizer& quantizer, const LinearInputs& inputs);

    size_t tasks() const { return (in_.weights.columns + STRIPES * width_ - 1) / (STRIPES * width_); }
    void quantize(size_t token);
    void multiply(size_t task) const;

private:
    void multiply_stripe(size_t first) const;

    const LinearCode& code_;
    const Quantizer quantizer_;
    const LinearInputs in_;
    const float step_;    // of the first part
    const size_t width_;  // columns of a stripe
    Integers rows_;       // in memory of the calling thread
    std::vector<float>& largest_;
};

}  // namespace quasar
