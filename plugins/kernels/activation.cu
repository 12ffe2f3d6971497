// An activation function of rows, multiplied by other rows where there is a gate.
#include "activation.cuh"

#include "async_copy.cuh"
#include "checks.h"
#include "element.cuh"
#include "launch.h"
#include "row_grid.h"
#include "vector.cuh"

namespace awq_edge {
namespace {

template <typename T, int kVector>
__global__ void __launch_bounds__(kRowThreads)
    activation_kernel(const T* gate, const T* up, T* y, int rows, int size, int64_t stride,
                      int activation) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= size / kVector) return;
  for (int row = blockIdx.y; row < rows; row += gridDim.y) {
    const int64_t offset = row * stride;
    Vector<T, kVector> values = load_vector<kVector>(gate + offset, index);
    Vector<T, kVector> factors;
    if (up != nullptr) factors = load_vector<kVector>(up + offset, index);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float factor = up != nullptr ? to_float(factors.values[i]) : 1.0f;
      values.values[i] = from_float<T>(activate(activation, to_float(values.values[i])) * factor);
    }
    store_vector<kVector>(y + static_cast<size_t>(row) * size, index, values);
  }
}

template <typename T>
int launch_activation(const void* gate, const void* up, void* y, int rows, int size,
                      int64_t stride, int activation, void* stream) {
  const bool vectors =
      fits_vectors(size) && stride % kVectorElements == 0 && is_aligned(gate) && is_aligned(up);
  auto* kernel = vectors ? activation_kernel<T, kVectorElements> : activation_kernel<T, 1>;
  const RowGrid shape(rows, vectors ? size / kVectorElements : size);
  return launch("awq_edge_activation", kernel, shape.grid, shape.block, 0, stream,
                static_cast<const T*>(gate), static_cast<const T*>(up), static_cast<T*>(y), rows,
                size, stride, activation);
}

}  // namespace
}  // namespace awq_edge

extern "C" int awq_edge_activation(const void* gate, const void* up, void* y, int32_t rows,
                                   int32_t size, int64_t stride, int32_t activation,
                                   int32_t dtype, void* stream) {
  AWQ_EDGE_REQUIRE_ALIGNED(gate, 2);
  AWQ_EDGE_REQUIRE(awq_edge::is_aligned(up, 2), "%s: up is %p; it must be aligned to 2 bytes",
                   __func__, up);
  AWQ_EDGE_REQUIRE_TENSOR(y);
  AWQ_EDGE_REQUIRE_POSITIVE(rows);
  AWQ_EDGE_REQUIRE_POSITIVE(size);
  AWQ_EDGE_REQUIRE(stride >= size, "%s: stride is %lld; rows have %d elements", __func__,
                   static_cast<long long>(stride), size);
  AWQ_EDGE_REQUIRE(activation >= AWQ_EDGE_ACTIVATION_SILU &&
                       activation <= AWQ_EDGE_ACTIVATION_RELU_SQUARED,
                   "%s: activation is %d; supported are %d to %d", __func__, activation,
                   AWQ_EDGE_ACTIVATION_SILU, AWQ_EDGE_ACTIVATION_RELU_SQUARED);
  AWQ_EDGE_REQUIRE_ACTIVATION(dtype);
  return dtype == AWQ_EDGE_FLOAT16
             ? awq_edge::launch_activation<__half>(gate, up, y, rows, size, stride, activation,
                                                   stream)
             : awq_edge::launch_activation<__nv_bfloat16>(gate, up, y, rows, size, stride,
                                                          activation, stream);
}
