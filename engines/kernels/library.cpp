// Entry points of the library: registering its operators, and which code they run.
#include <cstdlib>
#include <cstring>

#include "linear.h"
#include "operators.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace quasar {

const Code* code() {
    static const Code* const chosen = [] {
        const char* wanted = std::getenv("QUASAR_KERNELS");
        const bool lesser = wanted != nullptr && std::strcmp(wanted, AVX2.name) == 0;
        __builtin_cpu_init();
        if (!lesser && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
            return &AVX512_VNNI;
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
    if (table == nullptr) std::abort();  // refused before, by version: without a table there is no way to say anything
    ort::Api api(table);
    if (quasar::code() == nullptr) return api.error(ort::FAIL, "quasar's operators need a processor with AVX2");
    static ort::Domain* domain = nullptr;  // as long as any session lives
    static ort::Status* const failed = [&]() -> ort::Status* {
        if (auto* status = api.create_domain("quasar", &domain)) return status;
        return api.add_operator(domain, &quasar::W8A8_LINEAR);
    }();
    return failed != nullptr ? failed : api.add_domain(options, domain);
}
