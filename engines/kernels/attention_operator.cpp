// The operators `RaggedAttention` and `RaggedAttentionInt8` of the domain `quasar`, for float and int8 caches.
//
// Inputs: q float [1, rows, heads * dim], k and v float [1, rows, kv_heads * dim], the caches of keys and values
// [slots, kv_heads, capacity, dim] (int8: dim + 4), lengths int32 [slots] and last int32 [slots]: how many of the rows are each
// slot's, in the order of slots, and the position of the last; optionally cos and sin float [positions, dim / 2] of a rotation.
// Outputs: float [1, rows, heads * dim], and both caches.
// Attributes: `heads`, `kv_heads`, and `window`: the positions that a query looks at, its own among them; 0 for all.
#include <climits>
#include <cstring>
#include <new>

#include "attention_pass.h"
#include "code.h"
#include "operators.h"
#include "tensor.h"

namespace quasar {
namespace {

constexpr size_t FEW_ROWS = 4;    // fewer are not worth waking the other threads
constexpr int64_t SCALE_BYTES = 4;  // of a head and position of an int8 cache
enum Input : size_t { Q, K, V, PAST_KEYS, PAST_VALUES, LENGTHS, LAST, COS, SIN, INPUTS };
enum Output : size_t { Y, KEYS, VALUES, OUTPUTS };

struct Operator {
    ort::Api api;
    const AttentionCode& code;
    size_t heads;
    size_t kv_heads;
    size_t window;
    bool quantized;
};

// Why inputs do not fit each other; null where they do.
const char* check(const Operator& op, const Tensor* in) {
    const auto& q = in[Q].shape;
    const auto& cache = in[PAST_KEYS].shape;
    if (q.size() != 3 || q[0] != 1 || q[2] <= 0 || q[2] % op.heads != 0) return "q must be [1, rows, heads * dim]";
    const int64_t dim = q[2] / static_cast<int64_t>(op.heads), kv_heads = op.kv_heads;
    if (dim % GROUP != 0) return "heads must have a multiple of 16 numbers";
    if (in[K].shape != std::vector<int64_t>{1, q[1], kv_heads * dim} || in[V].shape != in[K].shape)
        return "k and v must be [1, rows, kv_heads * dim]";
    if (cache.size() != 4 || cache[1] != kv_heads || cache[2] % GROUP != 0 || cache[3] != dim + (op.quantized ? SCALE_BYTES : 0) ||
        in[PAST_VALUES].shape != cache)
        return "caches must be [slots, kv_heads, a multiple of 16, dim, and 4 more if they are int8]";
    if (in[LENGTHS].shape != std::vector<int64_t>{cache[0]} || in[LAST].shape != in[LENGTHS].shape)
        return "lengths and last must be [slots]";
    const bool rotates = in[COS].data != nullptr;
    if (rotates != (in[SIN].data != nullptr) ||
        (rotates && (in[COS].shape.size() != 2 || in[COS].shape[1] != dim / 2 || in[SIN].shape != in[COS].shape)))
        return "cos and sin must be [positions, dim / 2]";
    return nullptr;
}

// The chunks of a pass; why there are none, where lengths and positions cannot be.
const char* place(const Tensor* in, std::vector<Chunk>* chunks) {
    const int32_t *lengths = static_cast<int32_t*>(in[LENGTHS].data), *last = static_cast<int32_t*>(in[LAST].data);
    int64_t capacity = in[PAST_KEYS].shape[2], row = 0;
    if (in[COS].data != nullptr && in[COS].shape[0] < capacity) capacity = in[COS].shape[0];
    for (int64_t slot = 0; slot < in[LENGTHS].shape[0]; ++slot) {
        const int64_t length = lengths[slot], start = last[slot] - length + 1;
        if (length == 0) continue;
        if (length < 0 || start < 0 || last[slot] >= capacity) return "a position lies beyond the cache or the rotary tables";
        chunks->push_back({static_cast<size_t>(slot), static_cast<size_t>(row), static_cast<size_t>(length), static_cast<size_t>(start)});
        row += length;
    }
    return row == in[Q].shape[1] ? nullptr : "lengths must be as many as the rows together";
}

ort::Status* attend(const Operator& op, ort::KernelContext* context) {
    Tensor in[INPUTS], out[OUTPUTS];
    for (size_t i = 0; i < INPUTS; ++i)
        if (auto* status = read(op.api, context, i, &in[i])) return status;
    std::vector<Chunk> chunks;
    const char* reason = check(op, in);
    if (reason == nullptr) reason = place(in, &chunks);
    if (reason != nullptr) return op.api.error(ort::INVALID_ARGUMENT, reason);
    out[Y].shape = in[Q].shape;
    out[KEYS].shape = out[VALUES].shape = in[PAST_KEYS].shape;
    for (size_t i = 0; i < OUTPUTS; ++i)
        if (auto* status = write(op.api, context, i, &out[i])) return status;
    size_t bytes = op.quantized ? sizeof(int8_t) : sizeof(float);
    for (int64_t size : in[PAST_KEYS].shape) bytes *= size;
    for (size_t i : {0, 1})  // where both are bound to one buffer, there is nothing to copy
        if (in[PAST_KEYS + i].data != out[KEYS + i].data) std::memcpy(out[KEYS + i].data, in[PAST_KEYS + i].data, bytes);

    const size_t rows = in[Q].shape[1], dim = in[Q].shape[2] / op.heads;
    const AttentionInputs inputs{
        static_cast<float*>(in[Q].data), static_cast<float*>(in[K].data), static_cast<float*>(in[V].data),
        static_cast<float*>(in[COS].data), static_cast<float*>(in[SIN].data), rows, op.heads, op.kv_heads, dim, op.window,
        out[KEYS].data, out[VALUES].data, static_cast<size_t>(in[PAST_KEYS].shape[2]), op.quantized, static_cast<float*>(out[Y].data)};
    AttentionPass pass(op.code, inputs, chunks);
    if (rows < FEW_ROWS)
        for (size_t row = 0; row < rows; ++row) pass.prepare(row);
    else if (auto* status = op.api.parallel<&AttentionPass::prepare>(context, pass, rows))
        return status;
    if (auto* status = op.api.parallel<&AttentionPass::attend>(context, pass, pass.tasks())) return status;
    return pass.ends() == 0 ? nullptr : op.api.parallel<&AttentionPass::finish>(context, pass, pass.ends());
}

ort::Status* compute(void* self, ort::KernelContext* context) {
    const Operator& op = *static_cast<Operator*>(self);
    try {
        return attend(op, context);
    } catch (const std::bad_alloc&) {
        return op.api.error(ort::FAIL, "attention: out of memory");
    }
}

template <bool QUANTIZED>
ort::Status* create(const ort::CustomOp*, const void* const* table, const ort::KernelInfo* info, void** self) {
    const ort::Api api(table);
    int64_t heads = 0, kv_heads = 0, window = 0;
    if (auto* status = api.attribute(info, "heads", &heads)) return status;
    if (auto* status = api.attribute(info, "kv_heads", &kv_heads)) return status;
    if (auto* status = api.attribute(info, "window", &window)) return status;
    if (heads < 1 || kv_heads < 1 || heads % kv_heads != 0 || window < 0)
        return api.error(ort::INVALID_ARGUMENT, "heads must be a multiple of kv_heads, and window at least 0");
    *self = new Operator{api, *code()->attention, static_cast<size_t>(heads), static_cast<size_t>(kv_heads),
                         static_cast<size_t>(window), QUANTIZED};
    return nullptr;
}

template <bool QUANTIZED>
ort::CustomOp describe() {
    constexpr int CACHE = QUANTIZED ? ort::INT8 : ort::FLOAT;
    ort::CustomOp op;
    op.name = [](const ort::CustomOp*) { return QUANTIZED ? "RaggedAttentionInt8" : "RaggedAttention"; };
    op.provider = [](const ort::CustomOp*) -> const char* { return nullptr; };  // the CPU's
    op.input_type = [](const ort::CustomOp*, size_t i) -> int {
        return i == PAST_KEYS || i == PAST_VALUES ? CACHE : i == LENGTHS || i == LAST ? ort::INT32 : ort::FLOAT;
    };
    op.input_count = [](const ort::CustomOp*) -> size_t { return INPUTS; };
    op.output_type = [](const ort::CustomOp*, size_t i) -> int { return i == Y ? ort::FLOAT : CACHE; };
    op.output_count = [](const ort::CustomOp*) -> size_t { return OUTPUTS; };
    op.input_characteristic = [](const ort::CustomOp*, size_t i) -> int { return i < COS ? ort::REQUIRED : ort::OPTIONAL; };
    op.output_characteristic = [](const ort::CustomOp*, size_t) -> int { return ort::REQUIRED; };
    op.input_memory = [](const ort::CustomOp*, size_t) { return 0; };
    op.start_version = [](const ort::CustomOp*) { return 1; };
    op.end_version = [](const ort::CustomOp*) { return INT_MAX; };
    op.create_v2 = create<QUANTIZED>;
    op.compute_v2 = compute;
    op.destroy = [](void* self) { delete static_cast<Operator*>(self); };
    return op;
}

}  // namespace

const ort::CustomOp RAGGED_ATTENTION = describe<false>(), RAGGED_ATTENTION_INT8 = describe<true>();

}  // namespace quasar
