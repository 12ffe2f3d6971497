// Kernel launches, with programmatic dependent launch where the device has it.
#pragma once

#include <cuda_runtime.h>

#include "status.h"

namespace awq_edge {

// Launch `kernel` so that it may begin before the one in front of it in the stream has ended
// (sm_90 and later). Such a kernel calls wait_for_previous_kernel() before it touches what others
// read or write, and let_next_kernel_start() at its beginning.
template <typename... Parameters, typename... Arguments>
int launch(const char* what, void (*kernel)(Parameters...), dim3 grid, dim3 block,
           size_t shared_bytes, void* stream, Arguments... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = device_limits().compute_capability >= 90 ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  return launched(what);
}

}  // namespace awq_edge
