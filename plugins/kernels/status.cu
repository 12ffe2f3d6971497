#include "status.h"

#include <cstdarg>
#include <cstdio>

namespace awq_edge {
namespace {

thread_local char last_error[512] = "";

constexpr int kMaxDevices = 64;

DeviceLimits read_limits(int device) {
  DeviceLimits limits{1, 48 * 1024, 0, 0};
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&limits.sm_count, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&limits.shared_bytes_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                         device);
  cudaDeviceGetAttribute(&limits.l2_bytes, cudaDevAttrL2CacheSize, device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  limits.compute_capability = 10 * major + minor;
  return limits;
}

}  // namespace

int fail(int status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return status;
}

int launched(const char* what) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return AWQ_EDGE_OK;
  return fail(AWQ_EDGE_CUDA_ERROR, "%s: CUDA refused the launch: %s (%s)", what,
              cudaGetErrorString(error), cudaGetErrorName(error));
}

const DeviceLimits& device_limits() {
  // One entry per device and thread: no lock, and a thread that changes its device gets the other.
  static thread_local DeviceLimits known[kMaxDevices] = {};
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device < 0 || device >= kMaxDevices) device = 0;
  if (known[device].sm_count == 0) known[device] = read_limits(device);
  return known[device];
}

}  // namespace awq_edge

extern "C" {

int awq_edge_abi_version(void) { return AWQ_EDGE_ABI_VERSION; }

int awq_edge_layout_version(void) { return AWQ_EDGE_LAYOUT_VERSION; }

const char* awq_edge_last_error(void) { return awq_edge::last_error; }

const char* awq_edge_architectures(void) { return AWQ_EDGE_ARCHITECTURES; }

int awq_edge_cuda_version(void) { return CUDART_VERSION; }

const char* awq_edge_status_message(int status) {
  switch (status) {
    case AWQ_EDGE_OK:
      return "no error";
    case AWQ_EDGE_INVALID_ARGUMENT:
      return "an argument is out of its range";
    case AWQ_EDGE_UNSUPPORTED:
      return "no kernel exists for this combination of arguments";
    case AWQ_EDGE_WORKSPACE:
      return "the workspace is too small";
    case AWQ_EDGE_CUDA_ERROR:
      return "CUDA refused the launch";
    case AWQ_EDGE_NO_LIBRARY:
      return "cuBLASLt could not be loaded";
    default:
      return "unknown status";
  }
}

}  // extern "C"
