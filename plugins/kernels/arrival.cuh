// Work that is split over blocks and finished by whichever of them comes last.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace awq_edge {

// Whether this block is the last of `blocks` that arrives at `counter`. If it is, what the others
// wrote before they arrived is visible to it (read it with __ldcg: the L1 cache may be older), and
// the counter is zero again. All threads of the block must call it.
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
