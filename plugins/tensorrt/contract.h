// The operators of awq_edge/tensorrt/contract.py. The build makes contract.cpp, which defines these,
// with awq_edge/tensorrt/cpp_tables.py.
#pragma once

#include "op_contract.h"

namespace awq_edge::plugin {

extern const char* const kVersion;
extern const char* const kNamespace;

const Op& w4a16_linear();
const Op& cached_attention();

}  // namespace awq_edge::plugin
