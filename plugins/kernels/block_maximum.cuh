// The largest over the threads of a block.
#pragma once

#include "block_sum.cuh"

namespace awq_edge {

// In every thread. All threads of whole warps must call it.
template <typename T>
__device__ __forceinline__ T block_maximum(T value) {
  __shared__ T of_warp[kMaxWarps];
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, step);
    value = other > value ? other : value;
  }
  __syncthreads();  // a maximum before this one has been read
  if (threadIdx.x % kWarpSize == 0) of_warp[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  for (int warp = 0; warp < static_cast<int>(blockDim.x / kWarpSize); ++warp)
    value = of_warp[warp] > value ? of_warp[warp] : value;
  return value;
}

}  // namespace awq_edge
