// Inputs and outputs of an operator.
#pragma once

#include <vector>

#include "ort_api.h"

namespace quasar {

// An input or output; without data where an optional input is not there.
struct Tensor {
    void* data = nullptr;
    std::vector<int64_t> shape;
};

inline ort::Status* read(const ort::Api& api, const ort::KernelContext* context, size_t index, Tensor* tensor) {
    const ort::Value* value = nullptr;
    if (auto* status = api.input(context, index, &value)) return status;
    if (value == nullptr) return nullptr;
    ort::TensorInfo* info = nullptr;
    if (auto* status = api.tensor_info(value, &info)) return status;
    size_t rank = 0;
    auto* status = api.rank(info, &rank);
    tensor->shape.resize(rank);
    if (status == nullptr) status = api.shape(info, tensor->shape.data(), rank);
    api.release(info);
    return status != nullptr ? status : api.data(value, &tensor->data);
}

// An output of the shape that `tensor` has; gives its memory.
inline ort::Status* write(const ort::Api& api, ort::KernelContext* context, size_t index, Tensor* tensor) {
    ort::Value* value = nullptr;
    if (auto* status = api.output(context, index, tensor->shape.data(), tensor->shape.size(), &value)) return status;
    return api.data(value, &tensor->data);
}

}  // namespace quasar
