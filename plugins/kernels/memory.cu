// Memory that a framework hands out: counters to clear, caches to copy.
#include <cuda_runtime_api.h>

#include "status.h"

namespace awq_edge {
namespace {

int enqueued(const char* what, cudaError_t error) {
  if (error == cudaSuccess) return AWQ_EDGE_OK;
  return fail(AWQ_EDGE_CUDA_ERROR, "%s: CUDA refused it: %s (%s)", what,
              cudaGetErrorString(error), cudaGetErrorName(error));
}

}  // namespace
}  // namespace awq_edge

extern "C" {

int awq_edge_clear_counters(void* workspace, void* stream) {
  AWQ_EDGE_REQUIRE(workspace != nullptr && awq_edge::is_aligned(workspace),
                   "clear_counters: the workspace is %p, an address aligned to 16 bytes is needed",
                   workspace);
  return awq_edge::enqueued("clear_counters",
                            cudaMemsetAsync(workspace, 0, AWQ_EDGE_COUNTER_BYTES,
                                            static_cast<cudaStream_t>(stream)));
}

int awq_edge_copy(const void* from, void* to, size_t bytes, void* stream) {
  if (bytes == 0) return AWQ_EDGE_OK;
  AWQ_EDGE_REQUIRE(from != nullptr && to != nullptr, "copy: %zu bytes from %p to %p", bytes, from,
                   to);
  return awq_edge::enqueued("copy", cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice,
                                                    static_cast<cudaStream_t>(stream)));
}

}  // extern "C"
