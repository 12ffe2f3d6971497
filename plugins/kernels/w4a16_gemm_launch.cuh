// Instances of the GEMM kernel for one activation dtype.
#pragma once

#include "launch.h"
#include "w4a16_gemm.cuh"
#include "w4a16_launch.h"

namespace awq_edge {

template <typename T, int kBits, int kTokenTiles, int kWarpsAlongM>
int launch_gemm_instance(const GemmArguments& arguments, const GemmPlan& plan, void* stream) {
  using Block = GemmBlock<T, kBits, kTokenTiles, kWarpsAlongM>;
  auto* kernel = gemm_kernel<T, kBits, kTokenTiles, kWarpsAlongM>;
  constexpr size_t bytes = gemm_shared_bytes<kBits>(Block::kTokens);
  static_assert(bytes <= 99 * 1024, "sm_86, sm_89 and sm_120 have 99 KB for a thread block");
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  return launch("w4a16 gemm", kernel, dim3(plan.token_blocks * plan.row_blocks, plan.splits),
                dim3(Block::kThreads), bytes, stream, arguments);
}

template <typename T, int kBits>
int launch_gemm_bits(const GemmArguments& arguments, const GemmPlan& plan, void* stream) {
  if (plan.token_tiles == kWideTokenTiles) {
    return launch_gemm_instance<T, kBits, kWideTokenTiles, 2>(arguments, plan, stream);
  }
  return plan.warps_along_m == 2 ? launch_gemm_instance<T, kBits, 4, 2>(arguments, plan, stream)
                                 : launch_gemm_instance<T, kBits, 4, 1>(arguments, plan, stream);
}

template <typename T>
int launch_gemm_as(const GemmArguments& arguments, const GemmPlan& plan, int bits, void* stream) {
  if (bits == 3) return launch_gemm_bits<T, 3>(arguments, plan, stream);
  if (bits == 4) return launch_gemm_bits<T, 4>(arguments, plan, stream);
  return launch_gemm_bits<T, 8>(arguments, plan, stream);
}

}  // namespace awq_edge
