// The operator `W8A8Linear` of the domain `quasar`.
//
// Inputs: x float [.., depth]; weights int8 [columns, depth]; their scales float [columns]; optionally a bias float [columns].
// Output: float [.., columns].
// Attributes: those of `Quantizer`, `scale`, `parts` and `ratio`.
#include <climits>
#include <new>

#include "code.h"
#include "linear_product.h"
#include "operators.h"
#include "tensor.h"

namespace quasar {
namespace {

constexpr size_t FEW_TOKENS = 8;  // fewer are not worth waking the other threads

struct Operator {
    ort::Api api;
    const LinearCode& code;
    Quantizer quantizer;
};

ort::Status* multiply(const Operator& op, ort::KernelContext* context) {
    Tensor x, w, scales, bias;
    size_t index = 0;
    for (Tensor* tensor : {&x, &w, &scales, &bias})
        if (auto* status = read(op.api, context, index++, tensor)) return status;
    if (x.shape.empty() || w.shape.size() != 2 || x.shape.back() != w.shape[1] || scales.shape.size() != 1 ||
        scales.shape[0] != w.shape[0] || (bias.data != nullptr && bias.shape != scales.shape))
        return op.api.error(ort::INVALID_ARGUMENT, "W8A8Linear: shapes must be x [.., K], weights [N, K], scales [N], bias [N]");
    const size_t columns = w.shape[0], depth = w.shape[1];
    if (depth == 0 || depth > MOST_DEPTH) return op.api.error(ort::INVALID_ARGUMENT, "W8A8Linear: K must lie in 1..65536");
    size_t tokens = 1;
    for (size_t i = 0; i + 1 < x.shape.size(); ++i) tokens *= x.shape[i];
    x.shape.back() = w.shape[0];
    Tensor y{nullptr, x.shape};
    if (auto* status = write(op.api, context, 0, &y)) return status;
    if (tokens == 0 || columns == 0) return nullptr;

    LinearProduct product(op.code, op.quantizer,
                          {static_cast<float*>(x.data), tokens, {static_cast<int8_t*>(w.data), columns, depth},
                           static_cast<float*>(scales.data), static_cast<float*>(bias.data), static_cast<float*>(y.data)});
    if (tokens < FEW_TOKENS)
        for (size_t token = 0; token < tokens; ++token) product.quantize(token);
    else if (auto* status = op.api.parallel<&LinearProduct::quantize>(context, product, tokens))
        return status;
    return op.api.parallel<&LinearProduct::multiply>(context, product, product.tasks());
}

ort::Status* compute(void* self, ort::KernelContext* context) {
    const Operator& op = *static_cast<Operator*>(self);
    try {
        return multiply(op, context);
    } catch (const std::bad_alloc&) {
        return op.api.error(ort::FAIL, "W8A8Linear: out of memory");
    }
}

ort::Status* create(const ort::CustomOp*, const void* const* table, const ort::KernelInfo* info, void** self) {
    const ort::Api api(table);
    Quantizer quantizer{};
    int64_t parts = 0;
    if (auto* status = api.attribute(info, "scale", &quantizer.scale)) return status;
    if (auto* status = api.attribute(info, "parts", &parts)) return status;
    if (auto* status = api.attribute(info, "ratio", &quantizer.ratio)) return status;
    if (!(quantizer.scale >= 0) || parts < 1 || parts > 2 || !(quantizer.ratio > 0))
        return api.error(ort::INVALID_ARGUMENT, "W8A8Linear: scale must be at least 0, parts 1 or 2, ratio above 0");
    quantizer.parts = static_cast<size_t>(parts);
    *self = new Operator{api, *code()->linear, quantizer};
    return nullptr;
}

ort::CustomOp describe() {
    ort::CustomOp op;
    op.name = [](const ort::CustomOp*) { return "W8A8Linear"; };
    op.provider = [](const ort::CustomOp*) -> const char* { return nullptr; };  // the CPU's
    op.input_type = [](const ort::CustomOp*, size_t i) -> int { return i == 1 ? ort::INT8 : ort::FLOAT; };
    op.input_count = [](const ort::CustomOp*) -> size_t { return 4; };
    op.output_type = [](const ort::CustomOp*, size_t) -> int { return ort::FLOAT; };
    op.output_count = [](const ort::CustomOp*) -> size_t { return 1; };
    op.input_characteristic = [](const ort::CustomOp*, size_t i) -> int { return i == 3 ? ort::OPTIONAL : ort::REQUIRED; };
    op.output_characteristic = [](const ort::CustomOp*, size_t) -> int { return ort::REQUIRED; };
    op.input_memory = [](const ort::CustomOp*, size_t) { return 0; };
    op.start_version = [](const ort::CustomOp*) { return 1; };
    op.end_version = [](const ort::CustomOp*) { return INT_MAX; };
    op.create_v2 = create;
    op.compute_v2 = compute;
    op.destroy = [](void* self) { delete static_cast<Operator*>(self); };
    return op;
}

}  // namespace

const ort::CustomOp W8A8_LINEAR = describe();

}  // namespace quasar
