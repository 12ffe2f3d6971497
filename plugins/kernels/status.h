// Status codes with words: what every entry point of the C interface returns.
#pragma once

#include <cuda_runtime_api.h>

#include "awq_edge_kernels.h"

namespace awq_edge {

// Keeps the formatted text for awq_edge_last_error() and returns `status`.
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
int fail(int status, const char* format, ...);

// AWQ_EDGE_OK, or AWQ_EDGE_CUDA_ERROR where the launch of `what` just before was refused.
int launched(const char* what);

// The device's properties that launches depend on, read once per device. Never fails: where CUDA
// cannot tell, sm_count is 1.
struct DeviceLimits {
  int sm_count;
  int shared_bytes_per_block;  // the opt-in maximum
  int compute_capability;      // 10 * major + minor
  int l2_bytes;
};
const DeviceLimits& device_limits();

inline bool is_aligned(const void* pointer, size_t bytes = 16) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

}  // namespace awq_edge

// Leave the function with INVALID_ARGUMENT unless `condition`.
#define AWQ_EDGE_REQUIRE(condition, ...)                                            \
  do {                                                                              \
    if (!(condition)) return awq_edge::fail(AWQ_EDGE_INVALID_ARGUMENT, __VA_ARGS__); \
  } while (0)
