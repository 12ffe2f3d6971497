// SiLU and multiply: the two halves of a merged gate and up projection.
#include "async_copy.cuh"
#include "block_sum.cuh"
#include "checks.h"
#include "element.cuh"
#include "launch.h"
#include "row_grid.h"
#include "vector.cuh"

namespace awq_edge {
namespace {

// exp overflows to infinity far below zero, and the quotient is then the zero it should be.
__device__ __forceinline__ float silu(float value) { return value / (1.0f + expf(-value)); }

template <typename T, int kVector>
__global__ void __launch_bounds__(kRowThreads)
    silu_mul_kernel(const T* x, T* y, int rows, int size) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= size / kVector) return;
  for (int row = blockIdx.y; row < rows; row += gridDim.y) {
    const T* gate_row = x + static_cast<size_t>(row) * 2 * size;
    Vector<T, kVector> gate = load_vector<kVector>(gate_row, index);
    const Vector<T, kVector> up = load_vector<kVector>(gate_row + size, index);
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      gate.values[i] = from_float<T>(silu(to_float(gate.values[i])) * to_float(up.values[i]));
    store_vector<kVector>(y + static_cast<size_t>(row) * size, index, gate);
  }
}

template <typename T, int kVector>
int launch_silu_mul(const void* x, void* y, int rows, int size, void* stream) {
  const RowGrid rows_grid(rows, size / kVector);
  return launch("awq_edge_silu_mul", silu_mul_kernel<T, kVector>, rows_grid.grid, rows_grid.block, 0,
                stream, static_cast<const T*>(x), static_cast<T*>(y), rows, size);
}

template <typename T>
int dispatch_silu_mul(const void* x, void* y, int rows, int size, void* stream) {
  return fits_vectors(size) ? launch_silu_mul<T, kVectorElements>(x, y, rows, size, stream)
                            : launch_silu_mul<T, 1>(x, y, rows, size, stream);
}

}  // namespace
}  // namespace awq_edge

extern "C" int awq_edge_silu_mul(const void* x, void* y, int32_t rows, int32_t size, int32_t dtype,
                                 void* stream) {
  AWQ_EDGE_REQUIRE_TENSOR(x);
  AWQ_EDGE_REQUIRE_TENSOR(y);
  AWQ_EDGE_REQUIRE_POSITIVE(rows);
  AWQ_EDGE_REQUIRE_POSITIVE(size);
  AWQ_EDGE_REQUIRE_ACTIVATION(dtype);
  return dtype == AWQ_EDGE_FLOAT16
             ? awq_edge::dispatch_silu_mul<__half>(x, y, rows, size, stream)
             : awq_edge::dispatch_silu_mul<__nv_bfloat16>(x, y, rows, size, stream);
}
