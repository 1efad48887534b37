#include "linear_product.h"

#include <algorithm>
#include <cstring>

namespace quasar {
namespace {

constexpr float STEP = 1.0f / 127;
constexpr float TINY = 1e-12f;  // an all-zero token takes any scale
constexpr size_t LINE = 64;

// Kept from call to call: a pass has hundreds of products, and memory would be asked for in each.
thread_local std::vector<int8_t> values_of_thread;
thread_local std::vector<int32_t> sums_of_thread;
thread_local std::vector<float> largest_of_thread;

}  // namespace

LinearProduct::LinearProduct(const LinearCode& code, const Quantizer& quantizer, const LinearInputs& inputs)
    : code_(code),
      quantizer_(quantizer),
      in_(inputs),
      step_(quantizer.scale == 0 ? STEP : quantizer.scale),
      width_(std::clamp(STRIPE_BYTES / inputs.weights.depth, size_t{4}, MOST_COLUMNS)),
      largest_(largest_of_thread) {
    rows_.rows = inputs.tokens * quantizer.parts;
    // a line more than needed: rows a power of two apart would share a few lines of the cache
    rows_.stride = (inputs.weights.depth + LINE - 1) / LINE * LINE + LINE;
    values_of_thread.resize(rows_.rows * rows_.stride + LINE);
    sums_of_thread.resize(rows_.rows);
    largest_.resize(inputs.tokens);
    const size_t past = reinterpret_cast<uintptr_t>(values_of_thread.data()) % LINE;
    rows_.values = values_of_thread.data() + (LINE - past) % LINE;
    rows_.sums = sums_of_thread.data();
}

void LinearProduct::quantize(size_t token) {
    const size_t depth = in_.weights.depth, parts = quantizer_.parts;
    const float* x = in_.x + token * depth;
    float largest = quantizer_.scale == 0 ? code_.largest(x, depth) : 1;
    if (!(largest >= TINY)) largest = TINY;
    largest_[token] = largest;
    thread_local std::vector<float> left_over;
    left_over.resize(parts > 1 ? depth : 0);
    for (size_t part = 0; part < parts; ++part) {
        const size_t row = token * parts + part;
        int8_t* values = rows_.values + row * rows_.stride;
        std::memset(values + depth, 0, rows_.stride - depth);
        if (part == 0)
            code_.quantize(x, depth, largest, step_, parts > 1 ? left_over.data() : nullptr, values, &rows_.sums[row]);
        else
            code_.quantize(left_over.data(), depth, 1, step_ / quantizer_.ratio, nullptr, values, &rows_.sums[row]);
    }
}

void LinearProduct::multiply(size_t task) const {
    const size_t begin = task * STRIPES * width_, end = std::min(begin + STRIPES * width_, in_.weights.columns);
    for (size_t first = begin; first < end; first += width_) multiply_stripe(first);
}

void LinearProduct::multiply_stripe(size_t first) const {
    const size_t depth = in_.weights.depth, parts = quantizer_.parts;
    const Weights weights{in_.weights.values + first * depth, std::min(width_, in_.weights.columns - first), depth};
    const int8_t* next = weights.values + weights.columns * depth;
    const size_t behind = std::min(width_, in_.weights.columns - first - weights.columns) * depth;
    alignas(LINE) int32_t products[MOST_ROWS * MOST_COLUMNS];
    alignas(LINE) float scales[MOST_COLUMNS];
    for (size_t i = 0; i < weights.columns; ++i) scales[i] = step_ * in_.weight_scales[first + i];
    Scaling scaling{scales, 1, 1 / quantizer_.ratio, in_.bias == nullptr ? nullptr : in_.bias + first};
    for (size_t begin = 0; begin < rows_.rows; begin += MOST_ROWS) {
        const Integers some{rows_.values + begin * rows_.stride, rows_.sums + begin, std::min(MOST_ROWS, rows_.rows - begin),
                            rows_.stride};
        code_.multiply(some, weights, next, begin == 0 ? behind : 0, products);
        for (size_t row = 0; row < some.rows; row += parts) {
            const size_t token = (begin + row) / parts;
            const int32_t* of_row = products + row * MOST_COLUMNS;
            scaling.row = largest_[token];
            code_.finish(of_row, parts > 1 ? of_row + MOST_COLUMNS : nullptr, scaling, weights.columns,
                         in_.y + token * in_.weights.columns + first);
        }
    }
}

}  // namespace quasar
