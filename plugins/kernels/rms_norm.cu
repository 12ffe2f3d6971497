// RMSNorm of rows, with the residual added in the same pass.
#include "async_copy.cuh"
#include "block_sum.cuh"
#include "checks.h"
#include "element.cuh"
#include "launch.h"
#include "vector.cuh"

namespace awq_edge {
namespace {

constexpr int kMaxThreads = 512;
// Vectors that a thread keeps in registers between the statistics and the result: rows of up to
// 16,384 elements are read once.
constexpr int kKept = 4;

// One vector of the row: with a residual, the sum that replaces it.
template <typename T, int kVector>
__device__ __forceinline__ Vector<T, kVector> read_row(const T* x, T* residual, int index) {
  Vector<T, kVector> row = load_vector<kVector>(x, index);
  if (residual != nullptr) {
    const Vector<T, kVector> before = load_vector<kVector>(residual, index);
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      row.values[i] = from_float<T>(to_float(before.values[i]) + to_float(row.values[i]));
    store_vector<kVector>(residual, index, row);
  }
  return row;
}

template <typename T, int kVector>
__device__ __forceinline__ float sum_of_squares(const Vector<T, kVector>& row) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const float value = to_float(row.values[i]);
    sum += value * value;
  }
  return sum;
}

template <typename T, int kVector>
__device__ __forceinline__ Vector<T, kVector> normalized(Vector<T, kVector> row,
                                                         const Vector<T, kVector>& weight,
                                                         float scale) {
#pragma unroll
  for (int i = 0; i < kVector; ++i)
    row.values[i] = from_float<T>(to_float(row.values[i]) * scale * to_float(weight.values[i]));
  return row;
}

// One block per row. Its threads depend on `size` alone, so a row gives the same bits in any batch.
template <typename T, int kVector>
__global__ void __launch_bounds__(kMaxThreads)
    rms_norm_kernel(const T* x, T* residual, const T* weight, T* y, int size, float eps) {
  let_next_kernel_start();
  const int vectors = size / kVector;
  const int first = threadIdx.x, step = blockDim.x;
  Vector<T, kVector> kept[kKept], kept_weight[kKept];
  // No kernel writes weights: these loads overlap with the end of the kernel before.
#pragma unroll
  for (int i = 0; i < kKept; ++i)
    if (first + i * step < vectors) kept_weight[i] = load_vector<kVector>(weight, first + i * step);
  wait_for_previous_kernel();

  const size_t offset = static_cast<size_t>(blockIdx.x) * size;
  x += offset;
  y += offset;
  if (residual != nullptr) residual += offset;
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    if (first + i * step >= vectors) continue;
    kept[i] = read_row<T, kVector>(x, residual, first + i * step);
    squares += sum_of_squares(kept[i]);
  }
  for (int index = first + kKept * step; index < vectors; index += step)
    squares += sum_of_squares(read_row<T, kVector>(x, residual, index));

  const float scale = 1.0f / sqrtf(block_sum(squares) / size + eps);
#pragma unroll
  for (int i = 0; i < kKept; ++i)
    if (first + i * step < vectors)
      store_vector<kVector>(y, first + i * step, normalized(kept[i], kept_weight[i], scale));
  const T* row = residual != nullptr ? residual : x;
  for (int index = first + kKept * step; index < vectors; index += step)
    store_vector<kVector>(y, index,
                          normalized(load_vector<kVector>(row, index),
                                     load_vector<kVector>(weight, index), scale));
}

template <typename T, int kVector>
int launch_rms_norm(const void* x, void* residual, const void* weight, void* y, int rows, int size,
                    float eps, void* stream) {
  const int vectors = size / kVector;
  const int warps = (vectors + kWarpSize - 1) / kWarpSize;
  const int threads = warps * kWarpSize < kMaxThreads ? warps * kWarpSize : kMaxThreads;
  return launch("awq_edge_rms_norm", rms_norm_kernel<T, kVector>, dim3(rows), dim3(threads), 0,
                stream, static_cast<const T*>(x), static_cast<T*>(residual),
                static_cast<const T*>(weight), static_cast<T*>(y), size, eps);
}

template <typename T>
int dispatch_rms_norm(const void* x, void* residual, const void* weight, void* y, int rows,
                      int size, float eps, void* stream) {
  return fits_vectors(size)
             ? launch_rms_norm<T, kVectorElements>(x, residual, weight, y, rows, size, eps, stream)
             : launch_rms_norm<T, 1>(x, residual, weight, y, rows, size, eps, stream);
}

}  // namespace
}  // namespace awq_edge

extern "C" int awq_edge_rms_norm(const void* x, void* residual, const void* weight, void* y,
                                 int32_t rows, int32_t size, float eps, int32_t dtype,
                                 void* stream) {
  AWQ_EDGE_REQUIRE_TENSOR(x);
  AWQ_EDGE_REQUIRE_TENSOR(weight);
  AWQ_EDGE_REQUIRE_TENSOR(y);
  AWQ_EDGE_REQUIRE(awq_edge::is_aligned(residual),
                   "%s: residual is %p; it must be null or aligned to 16 bytes", __func__, residual);
  AWQ_EDGE_REQUIRE(residual == nullptr || residual != y,
                   "%s: residual and y are the same tensor; the sum would be lost", __func__);
  AWQ_EDGE_REQUIRE_POSITIVE(rows);
  AWQ_EDGE_REQUIRE_POSITIVE(size);
  AWQ_EDGE_REQUIRE(eps >= 0.0f, "%s: eps is %g; it must be 0 or more", __func__, eps);
  AWQ_EDGE_REQUIRE_ACTIVATION(dtype);
  return dtype == AWQ_EDGE_FLOAT16
             ? awq_edge::dispatch_rms_norm<__half>(x, residual, weight, y, rows, size, eps, stream)
             : awq_edge::dispatch_rms_norm<__nv_bfloat16>(x, residual, weight, y, rows, size, eps,
                                                          stream);
}
