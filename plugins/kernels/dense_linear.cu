// The entry points of the unquantized linear: checks and choice of a tactic.
#include "checks.h"
#include "dense_decode.cuh"
#include "dense_gemm.cuh"
#include "launch.h"
#include "w4a16_epilogue.cuh"
#include "w4a16_expand.h"
#include "w4a16_launch.h"

namespace awq_edge {
namespace {

template <typename T>
int launch_dense_decode(const DenseArguments& a, void* stream) {
  const int shift = dense_channel_shift(a.n, a.k, device_limits().sm_count);
  const int rows_of_block = (kDenseWarps >> shift) * kDenseRows;
  auto* kernel = a.m > 8 ? dense_decode_kernel<T, 2> : dense_decode_kernel<T, 1>;
  return launch("dense decode", kernel, dim3(ceil_div(a.n, rows_of_block)), dim3(32 * kDenseWarps),
                0, stream, a, shift);
}

template <typename T>
int launch_dense_gemm(const DenseArguments& a, void* stream) {
  const dim3 grid(ceil_div(a.n, kDenseGemmRows), ceil_div(a.m, kDenseGemmTokens));
  return launch("dense gemm", dense_gemm_kernel<T>, grid, dim3(kDenseGemmThreads), 0, stream, a);
}

int chosen_dense_tactic(int tactic, int m) {
  if (tactic != AWQ_EDGE_TACTIC_AUTO) return tactic;
  if (m <= AWQ_EDGE_DECODE_ROWS) return AWQ_EDGE_TACTIC_DECODE;
  return has_cublaslt() ? AWQ_EDGE_TACTIC_CUBLASLT : AWQ_EDGE_TACTIC_GEMM;
}

size_t dense_workspace(int tactic, int m) {
  return AWQ_EDGE_COUNTER_BYTES +
         (chosen_dense_tactic(tactic, m) == AWQ_EDGE_TACTIC_CUBLASLT ? kCublasLtWorkspace : 0);
}

int check_dense(const awq_edge_dense_weight* w, int m, int tactic, bool pointers) {
  AWQ_EDGE_REQUIRE(w != nullptr, "dense_linear: the weight is null");
  AWQ_EDGE_REQUIRE(w->in_features > 0 && w->in_features % 8 == 0,
                   "dense_linear: in_features is %d; it must be a multiple of 8", w->in_features);
  AWQ_EDGE_REQUIRE(w->out_features > 0, "dense_linear: out_features is %d", w->out_features);
  AWQ_EDGE_REQUIRE(w->dtype == AWQ_EDGE_FLOAT16 || w->dtype == AWQ_EDGE_BFLOAT16,
                   "dense_linear: dtype is %d; supported are %d (float16) and %d (bfloat16)",
                   w->dtype, AWQ_EDGE_FLOAT16, AWQ_EDGE_BFLOAT16);
  AWQ_EDGE_REQUIRE(m >= 1 && m <= AWQ_EDGE_MAX_ROWS, "dense_linear: m is %d; it must be 1 to %d", m,
                   AWQ_EDGE_MAX_ROWS);
  AWQ_EDGE_REQUIRE(tactic >= AWQ_EDGE_TACTIC_AUTO && tactic <= AWQ_EDGE_TACTIC_CUBLASLT,
                   "dense_linear: tactic is %d; supported are 0 to %d", tactic,
                   AWQ_EDGE_TACTIC_CUBLASLT);
  if (!pointers) return AWQ_EDGE_OK;
  AWQ_EDGE_REQUIRE(tactic != AWQ_EDGE_TACTIC_DECODE || m <= AWQ_EDGE_DECODE_ROWS,
                   "dense_linear: m is %d; the decode tactic takes at most %d", m,
                   AWQ_EDGE_DECODE_ROWS);
  AWQ_EDGE_REQUIRE(w->weight != nullptr && is_aligned(w->weight),
                   "dense_linear: weight %p is null or not aligned to 16 bytes", w->weight);
  AWQ_EDGE_REQUIRE(is_aligned(w->bias, 2), "dense_linear: bias %p is not aligned to 2 bytes",
                   w->bias);
  return AWQ_EDGE_OK;
}

int multiply_dense_by_cublaslt(const DenseArguments& a, int dtype, char* workspace, void* stream) {
  if (!has_cublaslt()) {
    return fail(AWQ_EDGE_NO_LIBRARY,
                "dense_linear: tactic %d needs libcublasLt.so.13 or .12, which could not be loaded",
                AWQ_EDGE_TACTIC_CUBLASLT);
  }
  const int status = launch_cublaslt(a.weight, a.x, a.y, a.m, a.n, a.k, dtype,
                                     workspace + AWQ_EDGE_COUNTER_BYTES, kCublasLtWorkspace, stream);
  if (status != AWQ_EDGE_OK || a.bias == nullptr) return status;
  return launch_finish(a.y, {a.y, a.bias, a.n, a.n, epilogue_of(AWQ_EDGE_EPILOGUE_NONE)}, a.m, a.n,
                       dtype, stream);
}

}  // namespace
}  // namespace awq_edge

using namespace awq_edge;

extern "C" {

int awq_edge_dense_workspace(const awq_edge_dense_weight* weight, int32_t max_m, int32_t tactic,
                             size_t* bytes) {
  const int status = check_dense(weight, max_m, tactic, false);
  if (status != AWQ_EDGE_OK) return status;
  AWQ_EDGE_REQUIRE(bytes != nullptr, "dense_linear: the result's pointer is null");
  *bytes = dense_workspace(tactic, max_m);
  return AWQ_EDGE_OK;
}

int awq_edge_dense_linear(const awq_edge_dense_weight* weight, const void* x, void* y, int32_t m,
                          int32_t tactic, void* workspace, size_t workspace_bytes, void* stream) {
  const int status = check_dense(weight, m, tactic, true);
  if (status != AWQ_EDGE_OK) return status;
  AWQ_EDGE_REQUIRE_TENSOR(x);
  AWQ_EDGE_REQUIRE_TENSOR(y);
  const size_t needed = dense_workspace(tactic, m);
  if (workspace_bytes < needed || workspace == nullptr || !is_aligned(workspace)) {
    return fail(AWQ_EDGE_WORKSPACE,
                "dense_linear: m %d needs a workspace of %zu bytes, aligned to 16; it is %p with "
                "%zu",
                m, needed, workspace, workspace_bytes);
  }
  const DenseArguments a{weight->weight, weight->bias,         x, y, m,
                         weight->out_features, weight->in_features};
  const bool half = weight->dtype == AWQ_EDGE_FLOAT16;
  switch (chosen_dense_tactic(tactic, m)) {
    case AWQ_EDGE_TACTIC_DECODE:
      return half ? launch_dense_decode<__half>(a, stream)
                  : launch_dense_decode<__nv_bfloat16>(a, stream);
    case AWQ_EDGE_TACTIC_GEMM:
      return half ? launch_dense_gemm<__half>(a, stream)
                  : launch_dense_gemm<__nv_bfloat16>(a, stream);
    default:
      return multiply_dense_by_cublaslt(a, weight->dtype, static_cast<char*>(workspace), stream);
  }
}

}  // extern "C"
