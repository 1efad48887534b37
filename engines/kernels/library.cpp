// Entry points of the library: registering its operators, and which code they run.
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "code.h"
#include "operators.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace quasar {

namespace {

constexpr Code AVX2{"avx2", &LINEAR_AVX2, &ATTENTION_AVX2};
constexpr Code AVX512_VNNI{"avx512-vnni", &LINEAR_AVX512_VNNI, &ATTENTION_AVX512};

}  // namespace

const Code* code() {
    static const Code* const chosen = [] {
        const char* wanted = std::getenv("QUASAR_KERNELS");
        const bool lesser = wanted != nullptr && std::strcmp(wanted, AVX2.name) == 0;
        __builtin_cpu_init();
        const bool vnni = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vnni");
        if (vnni && !lesser) return &AVX512_VNNI;
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &AVX2 : nullptr;
    }();
    return chosen;
}

}  // namespace quasar

// The name of what runs here; null where this processor can run nothing of it.
EXPORTED const char* quasar_kernels() {
    const quasar::Code* chosen = quasar::code();
    return chosen == nullptr ? nullptr : chosen->name;
}

EXPORTED ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
    const void* const* table = base->get_api(ort::VERSION);
    if (table == nullptr) return nullptr;  // too old to be told so; loading the graph will name the operator that is missing
    const ort::Api api(table);
    if (quasar::code() == nullptr) return api.error(ort::FAIL, "quasar's operators need a processor with AVX2");
    // as long as any session lives
    static ort::Domain* const domain = [&]() -> ort::Domain* {
        ort::Domain* made = nullptr;
        if (api.create_domain("quasar", &made) != nullptr) return nullptr;
        for (const ort::CustomOp* op : {&quasar::W8A8_LINEAR, &quasar::RAGGED_ATTENTION, &quasar::RAGGED_ATTENTION_INT8,
                                        &quasar::RAGGED_ATTENTION_INT4})
            if (api.add_operator(made, op) != nullptr) return nullptr;
        return made;
    }();
    if (domain == nullptr) return api.error(ort::FAIL, "quasar's operators could not be registered");
    return api.add_domain(options, domain);
}
