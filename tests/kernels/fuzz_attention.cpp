// Random attention against plain loops, with caches that end where their memory ends; and each row alone gives the same bits.
// usage: fuzz_attention CODE CASES [SEED]
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "attention_pass.h"
#include "guarded.h"

using namespace quasar;

namespace {

void run(const AttentionCode& code, const AttentionInputs& in, const std::vector<Chunk>& chunks) {
    const AttentionPass pass(code, in, chunks);
    for (size_t i = 0; i < pass.preparations(); ++i) pass.prepare(i);
    for (size_t task = 0; task < pass.tasks(); ++task) pass.attend(task);
    for (size_t end = 0; end < pass.ends(); ++end) pass.finish(end);
}

// A number of a cache as the query at position `seen_from` sees it; and half the distance between two such numbers.
double number(const AttentionInputs& in, const void* cache, size_t head, size_t position, size_t d, bool keys, size_t seen_from,
              double* half_step = nullptr) {
    const size_t dim = in.dim, numbers = in.capacity * dim;
    const auto place = [&](size_t at) { return keys ? (at / GROUP * dim + d) * GROUP + at % GROUP : at * dim + d; };
    const uint8_t* bytes = static_cast<const uint8_t*>(cache) + head * head_bytes(in.cache, in.capacity, dim);
    const float* behind = reinterpret_cast<const float*>(bytes + numbers);
    const size_t at = place(position);
    if (in.cache == CacheKind::FLOAT) return reinterpret_cast<const float*>(bytes)[at];
    if (in.cache == CacheKind::INT8) return static_cast<double>(static_cast<int8_t>(bytes[at])) * behind[position];
    if (position >= exact_from(seen_from)) return (behind + in.capacity / BLOCK * scales_of_block(dim))[place(position % RECENT)];
    const float* scales = behind + position / BLOCK * scales_of_block(dim) + (keys ? d : position % BLOCK);
    const double step = scales[0], least = scales[scales_of_block(dim) / 2];
    const size_t pair = keys ? ((position / 16 * (dim / 2) + d / 2) * 16 + position % 16) * 2 + d % 2 : ((position / 64 * 32 + position % 32) * dim + d) * 2 + position / 32 % 2;
    const auto half = [&](const uint8_t* plane) { return plane[pair / 32 * 16 + pair % 16] >> (pair / 16 % 2 * 4) & 15; };
    const bool coarse = in.cache == CacheKind::UPPER_PLANES;
    if (half_step != nullptr) *half_step = step * (coarse ? 8.5 : 0.5);
    return least + step * (16 * half(bytes) + (coarse ? 0 : half(bytes + numbers / 2) - 8));
}

// `heads` of x, rotated.
std::vector<double> rotated(const AttentionInputs& in, const float* x, size_t position) {
    std::vector<double> result(x, x + in.dim);
    for (size_t i = 0; in.cos != nullptr && i < in.dim / 2; ++i) {
        const double cos = in.cos[position * (in.dim / 2) + i], sin = in.sin[position * (in.dim / 2) + i];
        result[i] = x[i] * cos - x[i + in.dim / 2] * sin;
        result[i + in.dim / 2] = x[i + in.dim / 2] * cos + x[i] * sin;
    }
    return result;
}

// The largest distance of a row of a head from what it should be.
double distance(const AttentionInputs& in, const Chunk& chunk, size_t token, size_t head) {
    const size_t position = chunk.start + token, row = chunk.row + token, dim = in.dim;
    const size_t of_cache = chunk.slot * in.kv_heads + head / (in.heads / in.kv_heads);
    const std::vector<double> q = rotated(in, in.q + (row * in.heads + head) * dim, position);
    const size_t begin = in.window != 0 && position + 1 > in.window ? position + 1 - in.window : 0;
    std::vector<double> scores, wanted(dim);
    double most = -1e300, total = 0;
    for (size_t at = begin; at <= position; ++at) {
        double score = 0;
        for (size_t d = 0; d < dim; ++d) score += q[d] * number(in, in.keys, of_cache, at, d, true, position);
        scores.push_back(score / std::sqrt(static_cast<double>(dim)));
        most = std::fmax(most, scores.back());
    }
    for (double& score : scores) total += score = std::exp(score - most);
    double worst = 0;
    for (size_t d = 0; d < dim; ++d) {
        for (size_t at = begin; at <= position; ++at) wanted[d] += scores[at - begin] / total * number(in, in.values, of_cache, at, d, false, position);
        worst = std::fmax(worst, std::fabs(wanted[d] - in.y[(row * in.heads + head) * dim + d]));
    }
    return std::isnan(wanted[0]) ? 1e9 : worst;
}

// How far what the query at `seen_from` sees of a token is from its key and value, as a multiple of what rounding allows.
double damage(const AttentionInputs& in, const Chunk& chunk, size_t token, size_t head, size_t seen_from) {
    const size_t position = chunk.start + token, from = ((chunk.row + token) * in.kv_heads + head) * in.dim;
    const size_t of_cache = chunk.slot * in.kv_heads + head;
    const std::vector<double> key = rotated(in, in.k + from, position);
    double worst = 0, most = 1e-30;
    for (size_t d = 0; d < in.dim; ++d) most = std::fmax(most, std::fmax(std::fabs(key[d]), std::fabs(in.v[from + d])));
    for (size_t d = 0; d < in.dim; ++d)
        for (bool keys : {true, false}) {
            double allowed = in.cache == CacheKind::INT8 ? most * 0.5 / 127 : 0;
            const double found = number(in, keys ? in.keys : in.values, of_cache, position, d, keys, seen_from, &allowed);
            worst = std::fmax(worst, std::fabs((keys ? key[d] : in.v[from + d]) - found) / (allowed * 1.001 + 1e-6 * most));
        }
    return worst;
}

// Writes tokens of a chunk as passes do that take at most 50 of them.
void write(const AttentionCode& code, const AttentionInputs& in, const Chunk& chunk) {
    for (size_t done = 0; done < chunk.tokens; done += 50) {
        AttentionInputs part = in;
        part.q += done * in.heads * in.dim, part.k += done * in.kv_heads * in.dim, part.v += done * in.kv_heads * in.dim;
        part.rows = std::min<size_t>(50, chunk.tokens - done);
        const std::vector<Chunk> chunks{{chunk.slot, 0, part.rows, chunk.start + done}};
        const AttentionPass pass(code, part, chunks);
        for (size_t i = 0; i < pass.preparations(); ++i) pass.prepare(i);
    }
}

}  // namespace

int main(int count, char** arguments) {
    const std::string name = count > 2 ? arguments[1] : "";
    const AttentionCode* code = name == "avx2" ? &ATTENTION_AVX2 : name == "avx512-vnni" ? &ATTENTION_AVX512 : nullptr;
    if (code == nullptr) return std::fprintf(stderr, "usage: fuzz_attention avx2|avx512-vnni CASES [SEED]\n"), 2;
    std::mt19937 random(count > 3 ? std::atoi(arguments[3]) : 0);
    const auto below = [&](size_t n) { return random() % n; };
    std::normal_distribution<float> normal;
    for (int number = 0; number < std::atoi(arguments[2]); ++number) {
        const size_t kv_heads = 1 + below(3), heads = kv_heads * (1 + below(4)), dim = GROUP * (1 + below(below(4) ? 4 : 9));
        const size_t slots = 1 + below(4), kind = below(4);
        const size_t capacity = (kind < 2 ? GROUP : BLOCK) * (1 + below(below(6) ? 12 : kind < 2 ? 90 : 24));
        const bool rotates = below(4);
        std::vector<Chunk> chunks;
        size_t rows = 0;
        for (size_t slot = 0; slot < slots; ++slot) {
            if (slots > 1 && below(4) == 0) continue;
            const size_t tokens = 1 + below(std::min<size_t>(capacity, below(4) ? 7 : 60));
            chunks.push_back({slot, rows, tokens, below(capacity - tokens + 1)});
            rows += tokens;
        }
        const CacheKind cache_kind = static_cast<CacheKind>(kind);
        const size_t bytes = head_bytes(cache_kind, capacity, dim);
        Guarded<float> q(rows * heads * dim), k(rows * kv_heads * dim), v(rows * kv_heads * dim), y(rows * heads * dim);
        Guarded<float> cos(capacity * dim / 2), sin(capacity * dim / 2), again(rows * heads * dim);
        Guarded<char> keys(slots * kv_heads * bytes), values(slots * kv_heads * bytes);
        for (Guarded<float>* array : {&q, &k, &v})
            for (size_t i = 0; i < array->size(); ++i) (*array)[i] = normal(random) * (below(200) ? 1.0f : 8.0f);
        if (rows > 0 && below(8) == 0) std::fill_n(k.data(), dim, 0.0f), std::fill_n(v.data(), dim, 0.0f);
        for (size_t i = 0; i < cos.size(); ++i) cos[i] = std::cos(0.1f * i), sin[i] = std::sin(0.1f * i);
        const AttentionInputs in{q.data(), k.data(), v.data(), rotates ? cos.data() : nullptr, rotates ? sin.data() : nullptr, rows, heads, kv_heads,
                           dim, below(3) ? 0 : 1 + below(below(2) ? 20 : 700), keys.data(), values.data(), capacity, cache_kind, y.data()};
        // what nothing was written to is no number; what is kept of a sequence was written by a pass
        for (Guarded<char>* cache : {&keys, &values}) std::memset(cache->data(), 0xff, cache->size());
        for (const Chunk& chunk : chunks) {
            // beside planes, there may have been more, written over what the kept ones were in float
            const size_t kept = chunk.start + (kind < 2 || below(3) ? 0 : below(capacity - chunk.start + 1));
            Guarded<float> old_q(kept * heads * dim), old(2 * kept * kv_heads * dim), old_y(kept * heads * dim);
            for (size_t i = 0; i < old.size(); ++i) old[i] = normal(random);
            std::fill_n(old_q.data(), old_q.size(), 0.5f);
            AttentionInputs before = in;
            before.q = old_q.data(), before.k = old.data(), before.v = old.data() + kept * kv_heads * dim, before.y = old_y.data();
            before.rows = kept;
            write(*code, before, {chunk.slot, 0, kept, 0});
            const size_t some = kept == 0 ? 0 : below(chunk.start + 1), head = below(kv_heads);
            if (some == chunk.start) continue;
            const double far = damage(before, {chunk.slot, 0, kept, 0}, some, head, kept - 1);
            if (far <= 1) continue;
            std::printf("case %d: kind %zu, position %zu of %zu is %g times off\n", number, kind, some, kept, far);
            return 1;
        }
        run(*code, in, chunks);
        for (const Chunk& chunk : chunks)
            for (size_t token = 0; token < chunk.tokens; ++token) {
                const size_t head = below(heads);
                const double far = distance(in, chunk, token, head), written = damage(in, chunk, token, head / (heads / kv_heads), chunk.start + token);
                if (far < (kind < 2 ? 2e-4 : 2e-3) && written <= 1) continue;  // beside planes, products are of 16 bits
                std::printf("case %d: kind %zu, %zu heads of %zu, %zu kv, window %zu, slot %zu, start %zu: token %zu, head %zu is %g off, cache %g\n",
                            number, kind, heads, dim, kv_heads, in.window, chunk.slot, chunk.start, token, head, far, written);
                return 1;
            }
        for (const Chunk& chunk : chunks)
            for (size_t token = 0; token < chunk.tokens; ++token) {
                const size_t row = chunk.row + token;
                AttentionInputs alone = in;
                alone.q += row * heads * dim, alone.k += row * kv_heads * dim, alone.v += row * kv_heads * dim;
                alone.y = again.data() + row * heads * dim, alone.rows = 1;
                const std::vector<Chunk> only{{chunk.slot, 0, 1, chunk.start + token}};
                run(*code, alone, only);
            }
        for (size_t i = 0; i < again.size(); ++i)
            if (std::memcmp(&again[i], &y[i], sizeof(float)) != 0) {
                std::printf("case %d: row %zu, head %zu alone gives %.9g, in company %.9g\n", number, i / dim / heads, i / dim % heads,
                            again[i], y[i]);
                return 1;
            }
    }
    std::puts("ok");
}
