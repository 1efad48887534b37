// Attention of a pass: tokens of many sequences side by side, each with a cache of its own.
//
// A KV head is read once for all rows of a sequence that look at it. Long texts are cut at multiples of SPLIT positions, so that many
// threads share one; the cuts and the order of sums depend on positions alone, so a row's result does not depend on what shares
// its pass.
#pragma once

#include <vector>

#include "attention_code.h"

namespace quasar {

enum class CacheKind { FLOAT, INT8, PLANES, UPPER_PLANES };  // the last are those of the third, whose lower ones are not read

// Bytes of the keys of one KV head of one sequence, or of its values. The numbers come first, and behind them: scales of int8
// numbers; of planes the scales, the newest positions in float, and which those are, in CACHE_LINE bytes.
size_t head_bytes(CacheKind kind, size_t capacity, size_t dim);

// Tokens of one sequence; beside planes at most BLOCK.
struct Chunk {
    size_t slot;
    size_t row;     // of the pass, where they begin
    size_t tokens;
    size_t start;   // position of the first
};

struct AttentionInputs {
    const float* q;    // [rows, heads, dim]
    const float* k;    // [rows, kv_heads, dim]
    const float* v;    // the same
    const float* cos;  // [positions, dim / 2]; null where nothing is to be rotated
    const float* sin;
    size_t rows;
    size_t heads;
    size_t kv_heads;
    size_t dim;
    size_t window;    // positions that a query looks at, its own among them; 0 for all
    void* keys;       // [slots, kv_heads, head_bytes]
    void* values;     // the same
    size_t capacity;  // positions, a multiple of GROUP, and of BLOCK for planes
    CacheKind cache;
    float* y;  // [rows, heads, dim]
};

// One pass, cut into tasks: `prepare` for each preparation; then, when all are done, `attend` for each task; then `finish` for each
// end.
class AttentionPass {
public:
    AttentionPass(const AttentionCode& code, const AttentionInputs& inputs, const std::vector<Chunk>& chunks);

    size_t preparations() const { return chunks_.size() * in_.kv_heads; }
    size_t tasks() const { return tasks_.size(); }
    size_t ends() const { return ends_.size(); }
    void prepare(size_t preparation) const;
    void attend(size_t task) const;
    void finish(size_t end) const;

private:
    // Some tokens of a chunk, for one KV head.
    struct Block {
        Chunk tokens;
        size_t head;
        size_t first_split;
        size_t splits;
        size_t partial;  // where the results of splits begin, if each has a task of its own
    };
    struct Task {
        size_t block;
        size_t split;  // of the block's; ALL for one behind the other
    };
    static constexpr size_t ALL = -1;

    Range visible(size_t position) const;
    size_t partial_size(const Block& block) const;
    HeadCache cache(size_t slot, size_t head) const;
    Softmax softmax(float* memory, size_t rows) const;
    void attend_split(const Block& block, size_t split, const Softmax& result) const;
    void write(const Block& block, const Softmax& result) const;

    const AttentionCode& code_;
    const AttentionInputs in_;
    const size_t group_;  // query heads of a KV head
    const std::vector<Chunk>& chunks_;
    std::vector<Block> blocks_;
    std::vector<Task> tasks_;
    std::vector<size_t> ends_;  // blocks whose splits are to be put together
    std::vector<float>& rotated_;
    std::vector<float>& partials_;
};

}  // namespace quasar
