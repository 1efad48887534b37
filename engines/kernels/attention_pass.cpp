#include "attention_pass.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace quasar {
namespace {

constexpr size_t MOST_QUERIES = 48;  // of a task: more rows' sums would not stay in the second-level cache
constexpr size_t FEW_TOKENS = 16;    // chunks of so many are too few tasks for all threads

// Kept from call to call: a pass has a call for each layer, and memory would be asked for in each.
thread_local std::vector<float> rotated_of_thread, partials_of_thread;

}  // namespace

size_t head_bytes(CacheKind kind, size_t capacity, size_t dim) {
    const size_t numbers = capacity * dim;
    switch (kind) {
        case CacheKind::FLOAT: return numbers * sizeof(float);
        case CacheKind::INT8: return numbers + capacity * sizeof(float);
        default: return numbers + (capacity / BLOCK * scales_of_block(dim) + RECENT * dim) * sizeof(float) + CACHE_LINE;
    }
}

AttentionPass::AttentionPass(const AttentionCode& code, const AttentionInputs& inputs, const std::vector<Chunk>& chunks)
    : code_(code),
      in_(inputs),
      group_(inputs.heads / inputs.kv_heads),
      chunks_(chunks),
      rotated_(rotated_of_thread),
      partials_(partials_of_thread) {
    rotated_.resize(in_.rows * in_.heads * in_.dim);
    const size_t most = std::max(MOST_QUERIES / group_, size_t{1});
    size_t partials = 0;
    for (const Chunk& chunk : chunks)
        for (size_t done = 0; done < chunk.tokens; done += most)
            for (size_t head = 0; head < in_.kv_heads; ++head) {
                Block block{{chunk.slot, chunk.row + done, std::min(most, chunk.tokens - done), chunk.start + done}, head, 0, 0, 0};
                const size_t end = block.tokens.start + block.tokens.tokens;
                block.first_split = visible(block.tokens.start).begin / SPLIT;
                block.splits = (end + SPLIT - 1) / SPLIT - block.first_split;
                if (block.splits > 1 && chunk.tokens <= FEW_TOKENS) {
                    block.partial = partials;
                    partials += block.splits * partial_size(block);
                    for (size_t split = 0; split < block.splits; ++split) tasks_.push_back({blocks_.size(), split});
                    ends_.push_back(blocks_.size());
                } else {
                    tasks_.push_back({blocks_.size(), ALL});
                }
                blocks_.push_back(block);
            }
    partials_.resize(partials);
}

void AttentionPass::prepare(size_t preparation) const {
    const Chunk& chunk = chunks_[preparation / in_.kv_heads];
    const size_t head = preparation % in_.kv_heads, dim = in_.dim;
    const HeadCache cache = this->cache(chunk.slot, head);
    const float scale = 1 / std::sqrt(static_cast<float>(dim));
    thread_local std::vector<float> key;
    key.resize(dim);
    code_.settle(cache, {chunk.start, chunk.start + chunk.tokens});
    for (size_t token = 0; token < chunk.tokens; ++token) {
        const size_t row = chunk.row + token, position = chunk.start + token, i = row * in_.kv_heads + head;
        const float* cos = in_.cos == nullptr ? nullptr : in_.cos + position * (dim / 2);
        const float* sin = in_.sin == nullptr ? nullptr : in_.sin + position * (dim / 2);
        for (size_t q = i * group_; q < (i + 1) * group_; ++q) code_.rotate(in_.q + q * dim, cos, sin, dim, scale, rotated_.data() + q * dim);
        code_.rotate(in_.k + i * dim, cos, sin, dim, 1, key.data());
        code_.store(cache, position, key.data(), in_.v + i * dim);
    }
}

void AttentionPass::attend(size_t task) const {
    const Block& block = blocks_[tasks_[task].block];
    const size_t size = partial_size(block), rows = block.tokens.tokens * group_;
    if (tasks_[task].split != ALL) {
        const size_t split = tasks_[task].split;
        return attend_split(block, split, softmax(partials_.data() + block.partial + split * size, rows));
    }
    thread_local std::vector<float> memory;
    memory.resize(2 * size);
    const Softmax result = softmax(memory.data(), rows), later = softmax(memory.data() + size, rows);
    attend_split(block, 0, result);
    for (size_t split = 1; split < block.splits; ++split) {
        attend_split(block, split, later);
        code_.merge(result, later, rows, in_.dim);
    }
    write(block, result);
}

void AttentionPass::finish(size_t end) const {
    const Block& block = blocks_[ends_[end]];
    const size_t size = partial_size(block), rows = block.tokens.tokens * group_;
    float* partials = partials_.data() + block.partial;
    const Softmax result = softmax(partials, rows);
    for (size_t split = 1; split < block.splits; ++split) code_.merge(result, softmax(partials + split * size, rows), rows, in_.dim);
    write(block, result);
}

void AttentionPass::attend_split(const Block& block, size_t split, const Softmax& result) const {
    const size_t dim = in_.dim, rows = block.tokens.tokens * group_;
    thread_local std::vector<float> queries;
    thread_local std::vector<Range> ranges;
    queries.resize(rows * dim);
    ranges.resize(rows);
    for (size_t token = 0; token < block.tokens.tokens; ++token) {
        const float* from = rotated_.data() + ((block.tokens.row + token) * in_.heads + block.head * group_) * dim;
        std::memcpy(queries.data() + token * group_ * dim, from, group_ * dim * sizeof(float));
        std::fill_n(ranges.begin() + token * group_, group_, visible(block.tokens.start + token));
    }
    const size_t begin = (block.first_split + split) * SPLIT;
    code_.attend({queries.data(), ranges.data(), rows}, cache(block.tokens.slot, block.head), {begin, begin + SPLIT}, result);
}

void AttentionPass::write(const Block& block, const Softmax& result) const {
    const size_t dim = in_.dim;
    for (size_t row = 0; row < block.tokens.tokens * group_; ++row) {
        const size_t head = block.head * group_ + row % group_;
        float* y = in_.y + ((block.tokens.row + row / group_) * in_.heads + head) * dim;
        for (size_t d = 0; d < dim; ++d) y[d] = result.sums[row * dim + d] / result.totals[row];
    }
}

Range AttentionPass::visible(size_t position) const {
    return {in_.window != 0 && position + 1 > in_.window ? position + 1 - in_.window : 0, position + 1};
}

HeadCache AttentionPass::cache(size_t slot, size_t head) const {
    const size_t numbers = in_.capacity * in_.dim, at = (slot * in_.kv_heads + head) * head_bytes(in_.cache, in_.capacity, in_.dim);
    char *keys = static_cast<char*>(in_.keys) + at, *values = static_cast<char*>(in_.values) + at;
    const auto behind = [&](char* of) { return reinterpret_cast<float*>(of + numbers); };
    switch (in_.cache) {
        case CacheKind::FLOAT: return {keys, values, nullptr, nullptr, in_.dim, {}, {}, nullptr, false};
        case CacheKind::INT8: return {keys, values, behind(keys), behind(values), in_.dim, {}, {}, nullptr, false};
        default: break;
    }
    const size_t scales = in_.capacity / BLOCK * scales_of_block(in_.dim);
    const auto planes = [&](char* of) {
        uint8_t* upper = reinterpret_cast<uint8_t*>(of);
        return Planes{upper, upper + numbers / 2, behind(of)};
    };
    return {behind(keys) + scales, behind(values) + scales, nullptr, nullptr, in_.dim, planes(keys), planes(values),
            reinterpret_cast<int32_t*>(behind(keys) + scales + RECENT * in_.dim), in_.cache == CacheKind::UPPER_PLANES};
}

size_t AttentionPass::partial_size(const Block& block) const { return block.tokens.tokens * group_ * (in_.dim + 2); }

Softmax AttentionPass::softmax(float* memory, size_t rows) const {
    float* totals = memory + rows * in_.dim;
    return {memory, totals, totals + rows};
}

}  // namespace quasar
