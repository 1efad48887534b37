// The operators of the library.
#pragma once

#include "ort_api.h"

namespace quasar {

extern const ort::CustomOp W8A8_LINEAR;

}  // namespace quasar
