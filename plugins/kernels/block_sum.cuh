// Sums over the threads of a block, in an order that depends on nothing but their number.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace awq_edge {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kMaxWarps = 32;

// The sum of every thread's `value`, in every thread. All threads of whole warps must call it.
template <typename T>
__device__ __forceinline__ T block_sum(T value) {
  __shared__ T of_warp[kMaxWarps];
  const int warp = threadIdx.x / kWarpSize, warps = blockDim.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2)
    value += __shfl_xor_sync(kAllLanes, value, step);
  __syncthreads();  // a sum before this one has been read
  if (lane == 0) of_warp[warp] = value;
  __syncthreads();
  value = lane < warps ? of_warp[lane] : T(0);
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2)
    value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// The sum of the `value` of all threads before this one; `total`: of all threads.
template <typename T>
__device__ __forceinline__ T block_exclusive_sum(T value, T* total) {
  __shared__ T of_warp[kMaxWarps];
  const int warp = threadIdx.x / kWarpSize, warps = blockDim.x / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  T through = value;
#pragma unroll
  for (int step = 1; step < kWarpSize; step *= 2) {
    const T before = __shfl_up_sync(kAllLanes, through, step);
    if (lane >= step) through += before;
  }
  __syncthreads();  // a sum before this one has been read
  if (lane == kWarpSize - 1) of_warp[warp] = through;
  __syncthreads();
  T earlier = 0, all = 0;
  for (int other = 0; other < warps; ++other) {
    if (other < warp) earlier += of_warp[other];
    all += of_warp[other];
  }
  *total = all;
  return earlier + through - value;
}

}  // namespace awq_edge
