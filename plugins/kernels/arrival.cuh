// Work that is split over blocks and finished by whichever of them comes last.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace awq_edge {

// True for the last of `blocks` blocks to arrive at `counter`. To it the others' writes before their
// arrival are visible (read them with __ldcg: the L1 cache may be older), and the counter is zero
// again. All threads of the block must call it.
__device__ __forceinline__ bool last_to_arrive(uint32_t* counter, uint32_t blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1u) == blocks - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  const bool is_last = last;
  if (is_last) __threadfence();
  return is_last;
}

}  // namespace awq_edge
