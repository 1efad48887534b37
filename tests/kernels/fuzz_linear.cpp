// Random products against plain loops, bit by bit, with memory that ends where the data ends.
// usage: fuzz_linear CODE CASES [SEED]
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "guarded.h"
#include "linear_product.h"

using namespace quasar;

namespace {

// A token as integers, by the plainest of loops.
struct Token {
    std::vector<int> first, second;
    float largest = 1, step;

    Token(const float* x, size_t depth, const Quantizer& q) : step(q.scale) {
        if (q.scale == 0) {
            largest = 0, step = 1.0f / 127;
            for (size_t k = 0; k < depth; ++k) largest = std::fmax(largest, std::fabs(x[k]));
            if (!(largest >= 1e-12f)) largest = 1e-12f;
        }
        const auto integer = [](float value) { return static_cast<int>(std::nearbyint(std::fmin(127.0f, std::fmax(-128.0f, value)))); };
        for (size_t k = 0; k < depth; ++k) {
            const float unit = x[k] / largest;
            first.push_back(integer(unit / step));
            second.push_back(integer((unit - static_cast<float>(first[k]) * step) / (step / q.ratio)));
        }
    }
};

float expected(const LinearInputs& in, const Quantizer& q, const Token& token, size_t column) {
    const int8_t* w = in.weights.values + column * in.weights.depth;
    int first = 0, second = 0;
    for (size_t k = 0; k < in.weights.depth; ++k) first += token.first[k] * w[k], second += token.second[k] * w[k];
    const float scale = token.step * in.weight_scales[column];
    float y = static_cast<float>(first) * scale;
    if (q.parts == 2) y += static_cast<float>(second) * scale * (1 / q.ratio);
    y *= token.largest;
    return in.bias == nullptr ? y : y + in.bias[column];
}

}  // namespace

int main(int count, char** arguments) {
    const std::string name = count > 2 ? arguments[1] : "";
    const LinearCode* code = name == "avx2" ? &LINEAR_AVX2 : name == "avx512-vnni" ? &LINEAR_AVX512_VNNI : nullptr;
    if (code == nullptr) return std::fprintf(stderr, "usage: fuzz_linear avx2|avx512-vnni CASES [SEED]\n"), 2;
    std::mt19937 random(count > 3 ? std::atoi(arguments[3]) : 0);
    const auto below = [&](size_t n) { return random() % n; };
    std::normal_distribution<float> normal;
    for (int number = 0; number < std::atoi(arguments[2]); ++number) {
        const size_t tokens = 1 + (below(8) ? below(12) : below(140)), columns = 1 + below(below(8) ? 40 : 300);
        const size_t depth = 1 + (below(4) ? below(160) : below(2) ? 32 * below(40) : below(1500));
        const Quantizer quantizer{below(3) ? 0.0f : 0.02f, 1 + below(3) / 2, 254};
        Guarded<float> x(tokens * depth), scales(columns), bias(columns), y(tokens * columns);
        Guarded<int8_t> w(columns * depth);
        for (size_t i = 0; i < x.size(); ++i) x[i] = normal(random) * (below(500) ? 1.0f : 1000.0f);
        if (below(10) == 0) std::memset(x.data(), 0, depth * sizeof(float));  // a token of nothing
        for (size_t i = 0; i < w.size(); ++i) w[i] = below(20) ? static_cast<int>(below(255)) - 127 : below(2) ? 127 : -127;
        for (size_t i = 0; i < columns; ++i) scales[i] = 0.001f * (1 + below(9)), bias[i] = normal(random);
        const LinearInputs in{x.data(), tokens, {w.data(), columns, depth}, scales.data(), below(2) ? bias.data() : nullptr, y.data()};
        LinearProduct product(*code, quantizer, in);
        for (size_t token = 0; token < tokens; ++token) product.quantize(token);
        for (size_t task = 0; task < product.tasks(); ++task) product.multiply(task);
        for (size_t row = 0; row < tokens; ++row) {
            const Token token(x.data() + row * depth, depth, quantizer);
            for (size_t column = 0; column < columns; ++column) {
                const float wanted = expected(in, quantizer, token, column), found = y[row * columns + column];
                if (found == wanted) continue;
                std::printf("case %d: tokens %zu, columns %zu, depth %zu, scale %g, parts %zu: [%zu, %zu] is %.9g, not %.9g\n", number,
                            tokens, columns, depth, quantizer.scale, quantizer.parts, row, column, found, wanted);
                return 1;
            }
        }
    }
    std::puts("ok");
}
