// The operators, as awq_edge/tensorrt/contract.py specifies them.
#pragma once

#include "op_contract.h"

namespace awq_edge::plugin {

constexpr const char* kVersion = "1";
constexpr const char* kNamespace = "";
constexpr int64_t kMaxRows = 65535;  // of x in one call
constexpr int64_t kDecodeRows = 16;  // rows up to which each byte of the weight is read once

const Op& w4a16_linear();
const Op& cached_attention();

// All of the above as JSON, for the test that compares it with the Python side.
std::string contract_json();

}  // namespace awq_edge::plugin
