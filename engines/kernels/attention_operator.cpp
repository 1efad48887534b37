// The operators `RaggedAttention`, `RaggedAttentionInt8` and `RaggedAttentionInt4` of the domain `quasar`, for caches of float, of
// int8, and of two planes of 4 bits.
//
// Inputs: q float [1, rows, heads * dim], k and v float [1, rows, kv_heads * dim], the caches of keys and values
// [slots, kv_heads, capacity, dim] (int8: dim + 4; planes: [slots, kv_heads, 1, head_bytes]), lengths int32 [slots] and last int32
// [slots]: how many of the rows are each slot's, in the order of slots, and the position of the last; optionally cos and sin float
// [positions, dim / 2] of a rotation.
// Outputs: float [1, rows, heads * dim], and both caches.
// Attributes: `heads`, `kv_heads`, and `window`: the positions that a query looks at, its own among them; 0 for all. Beside planes
// also `capacity`: positions of a slot, and `planes`: 2 where both are read, 1 for the upper ones alone.
#include <climits>
#include <cstring>
#include <new>

#include "attention_pass.h"
#include "code.h"
#include "operators.h"
#include "tensor.h"

namespace quasar {
namespace {

constexpr int64_t MOST_POSITIONS = 1 << 24;
constexpr int64_t MOST_DIMENSIONS = 256;  // of planes: more products would not fit into 32 bits
constexpr size_t FEW_ROWS = 4;  // fewer are not worth waking the other threads
enum Input : size_t { Q, K, V, PAST_KEYS, PAST_VALUES, LENGTHS, LAST, COS, SIN, INPUTS };
enum Output : size_t { Y, KEYS, VALUES, OUTPUTS };

struct Operator {
    ort::Api api;
    const AttentionCode& code;
    size_t heads;
    size_t kv_heads;
    size_t window;
    CacheKind cache;
    size_t capacity;  // positions of a slot; 0 where the shape of the cache says so
};

size_t number_bytes(CacheKind kind) { return kind == CacheKind::FLOAT ? sizeof(float) : sizeof(int8_t); }
bool has_planes(CacheKind kind) { return kind >= CacheKind::PLANES; }

// Positions of a slot.
int64_t capacity(const Operator& op, const Tensor* in) { return has_planes(op.cache) ? op.capacity : in[PAST_KEYS].shape[2]; }

// Why inputs do not fit each other; null where they do.
const char* check(const Operator& op, const Tensor* in) {
    const auto& q = in[Q].shape;
    const auto& cache = in[PAST_KEYS].shape;
    if (q.size() != 3 || q[0] != 1 || q[2] <= 0 || q[2] % op.heads != 0) return "q must be [1, rows, heads * dim]";
    const int64_t dim = q[2] / static_cast<int64_t>(op.heads), kv_heads = op.kv_heads;
    if (dim % GROUP != 0) return "heads must have a multiple of 16 numbers";
    if (has_planes(op.cache) && dim > MOST_DIMENSIONS) return "beside planes, heads must have at most 256 numbers";
    if (in[K].shape != std::vector<int64_t>{1, q[1], kv_heads * dim} || in[V].shape != in[K].shape)
        return "k and v must be [1, rows, kv_heads * dim]";
    if (cache.size() != 4 || cache[1] != kv_heads || in[PAST_VALUES].shape != cache || capacity(op, in) % GROUP != 0 ||
        cache[2] * cache[3] * number_bytes(op.cache) != head_bytes(op.cache, capacity(op, in), dim))
        return "caches must be [slots, kv_heads, a multiple of 16, dim, and 4 more if they are int8], or planes of their capacity";
    if (in[LENGTHS].shape != std::vector<int64_t>{cache[0]} || in[LAST].shape != in[LENGTHS].shape)
        return "lengths and last must be [slots]";
    const bool rotates = in[COS].data != nullptr;
    if (rotates != (in[SIN].data != nullptr) ||
        (rotates && (in[COS].shape.size() != 2 || in[COS].shape[1] != dim / 2 || in[SIN].shape != in[COS].shape)))
        return "cos and sin must be [positions, dim / 2]";
    return nullptr;
}

// The chunks of a pass; why there are none, where lengths and positions cannot be.
const char* place(const Operator& op, const Tensor* in, std::vector<Chunk>* chunks) {
    const int32_t *lengths = static_cast<int32_t*>(in[LENGTHS].data), *last = static_cast<int32_t*>(in[LAST].data);
    int64_t positions = capacity(op, in), row = 0;
    if (in[COS].data != nullptr && in[COS].shape[0] < positions) positions = in[COS].shape[0];
    for (int64_t slot = 0; slot < in[LENGTHS].shape[0]; ++slot) {
        const int64_t length = lengths[slot], start = last[slot] - length + 1;
        if (length == 0) continue;
        if (length < 0 || start < 0 || last[slot] >= positions) return "a position lies beyond the cache or the rotary tables";
        if (has_planes(op.cache) && length > static_cast<int64_t>(BLOCK)) return "beside planes, a slot takes at most 64 rows at a time";
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
    if (reason == nullptr) reason = place(op, in, &chunks);
    if (reason != nullptr) return op.api.error(ort::INVALID_ARGUMENT, reason);
    out[Y].shape = in[Q].shape;
    out[KEYS].shape = out[VALUES].shape = in[PAST_KEYS].shape;
    for (size_t i = 0; i < OUTPUTS; ++i)
        if (auto* status = write(op.api, context, i, &out[i])) return status;
    size_t bytes = number_bytes(op.cache);
    for (int64_t size : in[PAST_KEYS].shape) bytes *= size;
    for (size_t i : {0, 1})  // where both are bound to one buffer, there is nothing to copy
        if (in[PAST_KEYS + i].data != out[KEYS + i].data) std::memcpy(out[KEYS + i].data, in[PAST_KEYS + i].data, bytes);

    const size_t rows = in[Q].shape[1], dim = in[Q].shape[2] / op.heads;
    const AttentionInputs inputs{
        static_cast<float*>(in[Q].data), static_cast<float*>(in[K].data), static_cast<float*>(in[V].data),
        static_cast<float*>(in[COS].data), static_cast<float*>(in[SIN].data), rows, op.heads, op.kv_heads, dim, op.window,
        out[KEYS].data, out[VALUES].data, static_cast<size_t>(capacity(op, in)), op.cache, static_cast<float*>(out[Y].data)};
    AttentionPass pass(op.code, inputs, chunks);
    if (rows < FEW_ROWS)
        for (size_t i = 0; i < pass.preparations(); ++i) pass.prepare(i);
    else if (auto* status = op.api.parallel<&AttentionPass::prepare>(context, pass, pass.preparations()))
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

template <CacheKind KIND>
ort::Status* create(const ort::CustomOp*, const void* const* table, const ort::KernelInfo* info, void** self) {
    const ort::Api api(table);
    int64_t heads = 0, kv_heads = 0, window = 0, capacity = 0, planes = 2;
    if (auto* status = api.attribute(info, "heads", &heads)) return status;
    if (auto* status = api.attribute(info, "kv_heads", &kv_heads)) return status;
    if (auto* status = api.attribute(info, "window", &window)) return status;
    if (has_planes(KIND)) {
        if (auto* status = api.attribute(info, "capacity", &capacity)) return status;
        if (auto* status = api.attribute(info, "planes", &planes)) return status;
        if (capacity < 1 || capacity > MOST_POSITIONS || capacity % BLOCK != 0)
            return api.error(ort::INVALID_ARGUMENT, "capacity must be a multiple of 64, and at most 2^24");
        if (planes != 1 && planes != 2) return api.error(ort::INVALID_ARGUMENT, "planes must be 1 or 2");
    }
    if (heads < 1 || kv_heads < 1 || heads % kv_heads != 0 || window < 0)
        return api.error(ort::INVALID_ARGUMENT, "heads must be a multiple of kv_heads, and window at least 0");
    *self = new Operator{api, *code()->attention, static_cast<size_t>(heads), static_cast<size_t>(kv_heads),
                         static_cast<size_t>(window), planes == 1 ? CacheKind::UPPER_PLANES : KIND, static_cast<size_t>(capacity)};
    return nullptr;
}

template <CacheKind KIND>
ort::CustomOp describe() {
    constexpr int CACHE = KIND == CacheKind::FLOAT ? ort::FLOAT : KIND == CacheKind::INT8 ? ort::INT8 : ort::UINT8;
    ort::CustomOp op;
    op.name = [](const ort::CustomOp*) { 
        return KIND == CacheKind::FLOAT ? "RaggedAttention" : KIND == CacheKind::INT8 ? "RaggedAttentionInt8" : "RaggedAttentionInt4";
    };
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
    op.create_v2 = create<KIND>;
    op.compute_v2 = compute;
    op.destroy = [](void* self) { delete static_cast<Operator*>(self); };
    return op;
}

}  // namespace

const ort::CustomOp RAGGED_ATTENTION = describe<CacheKind::FLOAT>(), RAGGED_ATTENTION_INT8 = describe<CacheKind::INT8>(),
                    RAGGED_ATTENTION_INT4 = describe<CacheKind::PLANES>();

}  // namespace quasar
