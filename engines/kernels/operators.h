// The operators of the library.
#pragma once

#include "ort_api.h"

namespace quasar {

extern const ort::CustomOp W8A8_LINEAR, RAGGED_ATTENTION, RAGGED_ATTENTION_INT8, RAGGED_ATTENTION_INT4;

}  // namespace quasar
