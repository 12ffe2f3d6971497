// Logits behind the output layer: their factor, their soft cap, and the cast to float32.
#include "async_copy.cuh"
#include "checks.h"
#include "element.cuh"
#include "launch.h"
#include "row_grid.h"
#include "vector.cuh"

namespace awq_edge {
namespace {

__device__ __forceinline__ void store(float value, float* y) { *y = value; }
template <typename T>
__device__ __forceinline__ void store(float value, T* y) {
  *y = from_float<T>(value);
}

template <typename T, typename Result, int kVector>
__global__ void __launch_bounds__(kRowThreads)
    logits_kernel(const T* x, Result* y, int rows, int size, float scale, float soft_cap) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int vector = blockIdx.x * blockDim.x + threadIdx.x;
  if (vector >= size / kVector) return;
  for (int row = blockIdx.y; row < rows; row += gridDim.y) {
    const size_t offset = static_cast<size_t>(row) * size;
    const Vector<T, kVector> values = load_vector<kVector>(x + offset, vector);
    Vector<Result, kVector> results;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      float value = to_float(values.values[i]) * scale;
      if (soft_cap != 0.0f) value = soft_cap * tanhf(value / soft_cap);
      store(value, &results.values[i]);
    }
    store_vector<kVector>(y + offset, vector, results);
  }
}

template <typename T, typename Result>
int launch_logits(const void* x, void* y, int rows, int size, float scale, float soft_cap,
                  void* stream) {
  const bool vectors = fits_vectors(size);
  const RowGrid shape(rows, vectors ? size / kVectorElements : size);
  auto* kernel =
      vectors ? logits_kernel<T, Result, kVectorElements> : logits_kernel<T, Result, 1>;
  return launch("awq_edge_logits", kernel, shape.grid, shape.block, 0, stream,
                static_cast<const T*>(x), static_cast<Result*>(y), rows, size, scale, soft_cap);
}

template <typename T>
int dispatch_logits(const void* x, void* y, int rows, int size, float scale, float soft_cap,
                    bool float32, void* stream) {
  return float32 ? launch_logits<T, float>(x, y, rows, size, scale, soft_cap, stream)
                 : launch_logits<T, T>(x, y, rows, size, scale, soft_cap, stream);
}

}  // namespace
}  // namespace awq_edge

extern "C" int awq_edge_logits(const void* x, void* y, int32_t rows, int32_t size, float scale,
                               float soft_cap, int32_t dtype, int32_t y_dtype, void* stream) {
  AWQ_EDGE_REQUIRE_TENSOR(x);
  AWQ_EDGE_REQUIRE_TENSOR(y);
  AWQ_EDGE_REQUIRE_POSITIVE(rows);
  AWQ_EDGE_REQUIRE_POSITIVE(size);
  AWQ_EDGE_REQUIRE(soft_cap >= 0.0f, "%s: soft_cap is %g; it must be positive, or 0 for none",
                   __func__, soft_cap);
  AWQ_EDGE_REQUIRE_ACTIVATION(dtype);
  AWQ_EDGE_REQUIRE(y_dtype == dtype || y_dtype == AWQ_EDGE_FLOAT32,
                   "%s: y_dtype is %d; it must be dtype (%d) or AWQ_EDGE_FLOAT32 (%d)", __func__,
                   y_dtype, dtype, AWQ_EDGE_FLOAT32);
  AWQ_EDGE_REQUIRE(x != y || y_dtype == dtype,
                   "%s: x and y are the same tensor and differ in dtype", __func__);
  const bool float32 = y_dtype == AWQ_EDGE_FLOAT32;
  return dtype == AWQ_EDGE_FLOAT16
             ? awq_edge::dispatch_logits<__half>(x, y, rows, size, scale, soft_cap, float32, stream)
             : awq_edge::dispatch_logits<__nv_bfloat16>(x, y, rows, size, scale, soft_cap, float32,
                                                        stream);
}
