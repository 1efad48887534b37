// The code that a processor runs.
#pragma once

#include "attention_code.h"
#include "linear_code.h"

namespace quasar {

struct Code {
    const char* name;
    const LinearCode* linear;
    const AttentionCode* attention;
};

// The best that this processor runs; null for none. QUASAR_KERNELS=avx2 asks for the lesser one.
const Code* code();

}  // namespace quasar
