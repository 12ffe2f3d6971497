// The last node of a decode step that is replayed as a graph: the cache has grown.
#include "async_copy.cuh"
#include "checks.h"
#include "launch.h"

namespace awq_edge {
namespace {

constexpr int kThreads = 64;

__global__ void advance_kernel(int64_t* past_length, int batch, int64_t by) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index < batch) past_length[index] += by;
}

}  // namespace
}  // namespace awq_edge

extern "C" int awq_edge_advance(int64_t* past_length, int32_t batch, int64_t by, void* stream) {
  AWQ_EDGE_REQUIRE_ALIGNED(past_length, sizeof(int64_t));
  AWQ_EDGE_REQUIRE_POSITIVE(batch);
  const dim3 grid((batch + awq_edge::kThreads - 1) / awq_edge::kThreads);
  return awq_edge::launch(__func__, awq_edge::advance_kernel, grid, dim3(awq_edge::kThreads), 0,
                          stream, past_length, batch, by);
}
