// The entry points of the quantized linear: checks, choice of a tactic, workspace.
#include <algorithm>

#include "status.h"
#include "w4a16_decode.cuh"
#include "w4a16_decode_launch.cuh"
#include "w4a16_expand.h"
#include "w4a16_gemm.cuh"
#include "w4a16_gemm_launch.cuh"
#include "w4a16_launch.h"

namespace awq_edge {

// Instantiated in files of their own.
extern template int launch_decode_as<__half>(const DecodeArguments&, const DecodePlan&, int, void*);
extern template int launch_decode_as<__nv_bfloat16>(const DecodeArguments&, const DecodePlan&, int,
                                                    void*);
extern template int launch_gemm_as<__half>(const GemmArguments&, const GemmPlan&, int, void*);
extern template int launch_gemm_as<__nv_bfloat16>(const GemmArguments&, const GemmPlan&, int, void*);

int launch_decode(const DecodeArguments& arguments, const DecodePlan& plan, int dtype, int bits,
                  void* stream) {
  return dtype == AWQ_EDGE_FLOAT16 ? launch_decode_as<__half>(arguments, plan, bits, stream)
                                   : launch_decode_as<__nv_bfloat16>(arguments, plan, bits, stream);
}

int launch_gemm(const GemmArguments& arguments, const GemmPlan& plan, int dtype, int bits,
                void* stream) {
  return dtype == AWQ_EDGE_FLOAT16 ? launch_gemm_as<__half>(arguments, plan, bits, stream)
                                   : launch_gemm_as<__nv_bfloat16>(arguments, plan, bits, stream);
}

int check_weight(const awq_edge_w4a16_weight* w, bool pointers) {
  AWQ_EDGE_REQUIRE(w != nullptr, "w4a16: the weight is null");
  AWQ_EDGE_REQUIRE(w->bits == 3 || w->bits == 4 || w->bits == 8,
                   "w4a16: bits is %d; supported are 3, 4 and 8", w->bits);
  AWQ_EDGE_REQUIRE(w->group_size == 32 || w->group_size == 64 || w->group_size == 128,
                   "w4a16: group_size is %d; supported are 32, 64 and 128", w->group_size);
  AWQ_EDGE_REQUIRE(w->in_features > 0 && w->in_features % w->group_size == 0,
                   "w4a16: in_features %d is not a multiple of group_size %d", w->in_features,
                   w->group_size);
  AWQ_EDGE_REQUIRE(w->out_features > 0, "w4a16: out_features is %d", w->out_features);
  AWQ_EDGE_REQUIRE(w->dtype == AWQ_EDGE_FLOAT16 || w->dtype == AWQ_EDGE_BFLOAT16,
                   "w4a16: dtype is %d; supported are %d (float16) and %d (bfloat16)", w->dtype,
                   AWQ_EDGE_FLOAT16, AWQ_EDGE_BFLOAT16);
  AWQ_EDGE_REQUIRE(
      w->epilogue >= AWQ_EDGE_EPILOGUE_NONE && w->epilogue <= AWQ_EDGE_EPILOGUE_RELU_SQUARED,
      "w4a16: epilogue is %d; supported are %d to %d", w->epilogue, AWQ_EDGE_EPILOGUE_NONE,
      AWQ_EDGE_EPILOGUE_RELU_SQUARED);
  AWQ_EDGE_REQUIRE(!epilogue_of(w->epilogue).paired || w->out_features % 2 == 0,
                   "w4a16: out_features %d with a gate is not even", w->out_features);
  if (!pointers) return AWQ_EDGE_OK;
  AWQ_EDGE_REQUIRE(w->qweight != nullptr && is_aligned(w->qweight),
                   "w4a16: qweight %p is null or not aligned to 16 bytes",
                   static_cast<const void*>(w->qweight));
  AWQ_EDGE_REQUIRE(w->scales != nullptr && is_aligned(w->scales),
                   "w4a16: scales %p is null or not aligned to 16 bytes",
                   static_cast<const void*>(w->scales));
  AWQ_EDGE_REQUIRE(is_aligned(w->zeros), "w4a16: zeros %p is not aligned to 16 bytes",
                   static_cast<const void*>(w->zeros));
  AWQ_EDGE_REQUIRE(is_aligned(w->bias, 2), "w4a16: bias %p is not aligned to 2 bytes", w->bias);
  return AWQ_EDGE_OK;
}

namespace {

// From this many rows on, Hopper multiplies 16-bit weights by its own instructions so much faster
// than mma.sync that expanding them first pays: docs/kernels.md has the measurement. Edge devices
// have no such instructions.
constexpr int kCublasLtFrom = 192;

int check_tactic(const TacticFields& fields, int m) {
  AWQ_EDGE_REQUIRE(fields.tactic >= AWQ_EDGE_TACTIC_AUTO && fields.tactic <= AWQ_EDGE_TACTIC_CUBLASLT,
                   "w4a16: tactic is %d; supported are 0 to %d", fields.tactic,
                   AWQ_EDGE_TACTIC_CUBLASLT);
  AWQ_EDGE_REQUIRE(fields.tactic != AWQ_EDGE_TACTIC_DECODE || m <= kMaxDecodeTokens,
                   "w4a16: m is %d; the decode tactic takes at most %d", m, kMaxDecodeTokens);
  AWQ_EDGE_REQUIRE(fields.tiles <= 2 && fields.warps <= 16 &&
                       (fields.row_warps == 0 || ((fields.row_warps & (fields.row_warps - 1)) == 0 &&
                                                  fields.warps % fields.row_warps == 0)),
                   "w4a16: tactic with %d tiles, %d warps and %d of them along the rows; at most 2 "
                   "and 16, the latter a multiple of the last, which is a power of two",
                   fields.tiles, fields.warps, fields.row_warps);
  return AWQ_EDGE_OK;
}

// The tactic that AUTO means for this many rows.
int chosen_tactic(int tactic, int m) {
  if (tactic != AWQ_EDGE_TACTIC_AUTO) return tactic;
  if (m <= kMaxDecodeTokens) return AWQ_EDGE_TACTIC_DECODE;
  if (m >= kCublasLtFrom && device_limits().compute_capability == 90 && has_cublaslt()) {
    return AWQ_EDGE_TACTIC_CUBLASLT;
  }
  return AWQ_EDGE_TACTIC_GEMM;
}

Machine this_machine() {
  const DeviceLimits& limits = device_limits();
  return {limits.sm_count, limits.shared_bytes_per_block};
}

size_t rounded(size_t bytes) { return (bytes + 255) / 256 * 256; }

size_t workspace_of(const awq_edge_w4a16_weight& w, const LinearSizes& s, const TacticFields& fields,
                    int m) {
  const Machine machine = this_machine();
  switch (chosen_tactic(fields.tactic, m)) {
    case AWQ_EDGE_TACTIC_DECODE:
      return AWQ_EDGE_COUNTER_BYTES +
             4 * decode_plan(m, s.tiles, s.blocks, w.bits, machine, fields).partial_floats;
    case AWQ_EDGE_TACTIC_GEMM:
      return AWQ_EDGE_COUNTER_BYTES +
             4 * gemm_plan(m, s.tiles, s.blocks, w.group_size, machine, fields).partial_floats;
    default:
      return AWQ_EDGE_COUNTER_BYTES + rounded(size_t(s.rows) * w.in_features * 2) +
             (s.paired ? rounded(size_t(m) * s.rows * 2) : 0) + kCublasLtWorkspace;
  }
}

int multiply_by_cublaslt(const awq_edge_w4a16_weight& w, const LinearSizes& s, const Output& output,
                         const void* x, void* y, int m, uint8_t* workspace, void* stream) {
  const ExpandArguments expand{w.qweight,
                               reinterpret_cast<const uint8_t*>(w.scales),
                               reinterpret_cast<const uint8_t*>(w.zeros),
                               workspace,
                               s.rows,
                               w.in_features,
                               s.tiles,
                               s.blocks,
                               w.group_size};
  uint8_t* next = workspace + rounded(size_t(s.rows) * w.in_features * 2);
  void* sums = s.paired ? next : y;
  if (s.paired) next += rounded(size_t(m) * s.rows * 2);
  if (!has_cublaslt()) {
    return fail(AWQ_EDGE_NO_LIBRARY,
                "w4a16: tactic %d needs libcublasLt.so.13 or .12, which could not be loaded",
                AWQ_EDGE_TACTIC_CUBLASLT);
  }
  int status = launch_expand(expand, w.dtype, w.bits, stream);
  if (status != AWQ_EDGE_OK) return status;
  status = launch_cublaslt(workspace, x, sums, m, s.rows, w.in_features, w.dtype, next,
                           kCublasLtWorkspace, stream);
  if (status != AWQ_EDGE_OK || (s.epilogue.activation < 0 && w.bias == nullptr)) return status;
  return launch_finish(sums, output, m, s.rows, w.dtype, stream);
}

}  // namespace
}  // namespace awq_edge

using namespace awq_edge;

extern "C" {

int awq_edge_w4a16_workspace(const awq_edge_w4a16_weight* weight, int32_t max_m, int32_t tactic,
                             size_t* bytes) {
  int status = check_weight(weight, false);
  if (status != AWQ_EDGE_OK) return status;
  AWQ_EDGE_REQUIRE(max_m >= 1 && max_m <= kMaxTokens, "w4a16: max_m is %d; supported are 1 to %d",
                   max_m, kMaxTokens);
  AWQ_EDGE_REQUIRE(bytes != nullptr, "w4a16: the result's pointer is null");
  const TacticFields fields = tactic_fields(tactic);
  status = check_tactic(fields, 1);
  if (status != AWQ_EDGE_OK) return status;
  if (fields.tactic == AWQ_EDGE_TACTIC_DECODE) max_m = std::min(max_m, kMaxDecodeTokens);
  const LinearSizes s = sizes_of(*weight);
  size_t most = 0;
  // A smaller m may be split more ways and need more; m of one multiple of 8 are alike.
  for (int m = 1; m < max_m; m += 8) most = std::max(most, workspace_of(*weight, s, fields, m));
  *bytes = std::max(most, workspace_of(*weight, s, fields, max_m));
  return AWQ_EDGE_OK;
}

int awq_edge_w4a16_linear(const awq_edge_w4a16_weight* weight, const void* x, void* y, int32_t m,
                          int32_t tactic, void* workspace, size_t workspace_bytes, void* stream) {
  int status = check_weight(weight, true);
  if (status != AWQ_EDGE_OK) return status;
  AWQ_EDGE_REQUIRE(x != nullptr && is_aligned(x), "w4a16: x %p is null or not aligned to 16 bytes",
                   x);
  AWQ_EDGE_REQUIRE(y != nullptr && is_aligned(y), "w4a16: y %p is null or not aligned to 16 bytes",
                   y);
  AWQ_EDGE_REQUIRE(m >= 1 && m <= kMaxTokens, "w4a16: m is %d; supported are 1 to %d", m,
                   kMaxTokens);
  const TacticFields fields = tactic_fields(tactic);
  status = check_tactic(fields, m);
  if (status != AWQ_EDGE_OK) return status;
  const awq_edge_w4a16_weight& w = *weight;
  const LinearSizes s = sizes_of(w);
  const size_t needed = workspace_of(w, s, fields, m);
  if (needed > workspace_bytes || workspace == nullptr || !is_aligned(workspace)) {
    return fail(AWQ_EDGE_WORKSPACE,
                "w4a16: m %d of a weight [%d, %d] needs a workspace of %zu bytes, aligned to 16; it "
                "is %p with %zu",
                m, w.out_features, w.in_features, needed, workspace, workspace_bytes);
  }
  const Output output{y, w.bias, w.out_features, s.width, s.epilogue};
  auto* counters = static_cast<unsigned*>(workspace);
  auto* rest = static_cast<uint8_t*>(workspace) + AWQ_EDGE_COUNTER_BYTES;
  const auto* scales = reinterpret_cast<const uint8_t*>(w.scales);
  const auto* zeros = reinterpret_cast<const uint8_t*>(w.zeros);
  const Machine machine = this_machine();
  switch (chosen_tactic(fields.tactic, m)) {
    case AWQ_EDGE_TACTIC_DECODE: {
      const DecodePlan plan = decode_plan(m, s.tiles, s.blocks, w.bits, machine, fields);
      const DecodeArguments arguments{w.qweight, scales,   zeros,         x,
                                      output,    reinterpret_cast<float*>(rest), counters,
                                      m,         w.in_features, s.tiles,  s.blocks,
                                      w.group_size, plan.splits,
                                      plan.warps >> plan.row_shift, plan.row_shift};
      return launch_decode(arguments, plan, w.dtype, w.bits, stream);
    }
    case AWQ_EDGE_TACTIC_GEMM: {
      const GemmPlan plan = gemm_plan(m, s.tiles, s.blocks, w.group_size, machine, fields);
      const GemmArguments arguments{w.qweight, scales,   zeros,         x,
                                    output,    reinterpret_cast<float*>(rest), counters,
                                    m,         w.in_features, s.tiles,  s.blocks,
                                    w.group_size, plan.token_blocks, plan.splits};
      return launch_gemm(arguments, plan, w.dtype, w.bits, stream);
    }
    default:
      return multiply_by_cublaslt(w, s, output, x, y, m, rest, stream);
  }
}

int awq_edge_w4a16_dequantize(const awq_edge_w4a16_weight* weight, void* dense, void* stream) {
  const int status = check_weight(weight, true);
  if (status != AWQ_EDGE_OK) return status;
  AWQ_EDGE_REQUIRE(dense != nullptr && is_aligned(dense),
                   "w4a16: w %p is null or not aligned to 16 bytes", dense);
  const LinearSizes s = sizes_of(*weight);
  const ExpandArguments expand{weight->qweight,
                               reinterpret_cast<const uint8_t*>(weight->scales),
                               reinterpret_cast<const uint8_t*>(weight->zeros),
                               dense,
                               weight->out_features,
                               weight->in_features,
                               s.tiles,
                               s.blocks,
                               weight->group_size};
  return launch_expand(expand, weight->dtype, weight->bits, stream);
}

}  // extern "C"
