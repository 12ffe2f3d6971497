// RMSNorm and LayerNorm of rows, with what stands between two of them in a decoder: a norm of the
// branch, its factor, and the addition to the residual.
//
//     x ── (norm: post_weight) ── (* residual_scale) ──(+)── residual ── norm: weight ── y
//
// One block per row. Its threads depend on `size` alone, so a row gives the same bits in any batch.
#include "async_copy.cuh"
#include "block_sum.cuh"
#include "checks.h"
#include "element.cuh"
#include "launch.h"
#include "vector.cuh"

namespace awq_edge {
namespace {

constexpr int kMaxThreads = 512;
// Vectors that a thread keeps in registers from step to step: rows of up to 16,384 elements are
// read once.
constexpr int kKept = 4;

// A thread's vectors of a row: the first kKept in registers, the others in `source`.
template <typename T, int kVector>
struct Row {
  using Values = Vector<T, kVector>;
  Values kept[kKept];
  T* source;
  int vectors;  // of the whole row

  // visit(index, slot, values) for each vector; slot: where in `kept` it is, kKept where it is not.
  // What it does to values in registers lasts.
  template <typename Visit>
  __device__ __forceinline__ void visit(Visit visit) {
    const int first = threadIdx.x, step = blockDim.x;
#pragma unroll
    for (int i = 0; i < kKept; ++i)
      if (first + i * step < vectors) visit(first + i * step, i, kept[i]);
    for (int index = first + kKept * step; index < vectors; index += step) {
      Values values = load_vector<kVector>(source, index);
      visit(index, kKept, values);
    }
  }
};

// A row's values v become (v - mean) * factor * weight + bias.
struct Statistics {
  float mean;
  float factor;
};

template <typename T, int kVector>
__device__ __forceinline__ Statistics statistics_of(Row<T, kVector>& row, const awq_edge_norm& a) {
  const auto block_mean = [&](auto term) {
    float sum = 0.0f;
    row.visit([&](int, int, const Vector<T, kVector>& values) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) sum += term(to_float(values.values[i]));
    });
    return block_sum(sum) / a.size;
  };
  const float mean =
      a.kind == AWQ_EDGE_NORM_LAYER ? block_mean([](float value) { return value; }) : 0.0f;
  const float variance =
      block_mean([&](float value) { return (value - mean) * (value - mean); });
  return {mean, 1.0f / sqrtf(variance + a.eps)};
}

// One vector after the norm, in float32. bias: null: none.
template <typename T, int kVector>
__device__ __forceinline__ void normalize(float (&result)[kVector],
                                          const Vector<T, kVector>& values,
                                          const Vector<T, kVector>& weight, const T* bias,
                                          int index, Statistics statistics, float weight_offset) {
#pragma unroll
  for (int i = 0; i < kVector; ++i)
    result[i] = (to_float(values.values[i]) - statistics.mean) * statistics.factor *
                (to_float(weight.values[i]) + weight_offset);
  if (bias == nullptr) return;
  const Vector<T, kVector> added = load_vector<kVector>(bias, index);
#pragma unroll
  for (int i = 0; i < kVector; ++i) result[i] += to_float(added.values[i]);
}

// residual += residual_scale * branch, where the branch is x or its norm. The row is the residual
// then.
template <typename T, int kVector>
__device__ __forceinline__ void add_branch(Row<T, kVector>& row, const awq_edge_norm& a,
                                           T* residual) {
  const T* post_weight = static_cast<const T*>(a.post_weight);
  const Statistics statistics =
      post_weight == nullptr ? Statistics{} : statistics_of(row, a);
  row.visit([&](int index, int, Vector<T, kVector>& values) {
    float branch[kVector];
    if (post_weight == nullptr) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) branch[i] = to_float(values.values[i]);
    } else {
      normalize<T, kVector>(branch, values, load_vector<kVector>(post_weight, index),
                            static_cast<const T*>(a.post_bias), index, statistics,
                            a.weight_offset);
    }
    const Vector<T, kVector> before = load_vector<kVector>(residual, index);
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      values.values[i] = from_float<T>(fmaf(branch[i], a.residual_scale, to_float(before.values[i])));
    store_vector<kVector>(residual, index, values);
  });
  row.source = residual;
}

template <typename T, int kVector>
__global__ void __launch_bounds__(kMaxThreads) norm_kernel(const __grid_constant__ awq_edge_norm a) {
  let_next_kernel_start();
  Row<T, kVector> row;
  row.vectors = a.size / kVector;
  Vector<T, kVector> kept_weight[kKept];
  const T* weight = static_cast<const T*>(a.weight);
  const int first = threadIdx.x, step = blockDim.x;
  // No kernel writes weights: these loads overlap with the end of the kernel before.
#pragma unroll
  for (int i = 0; i < kKept; ++i)
    if (a.y != nullptr && first + i * step < row.vectors)
      kept_weight[i] = load_vector<kVector>(weight, first + i * step);
  wait_for_previous_kernel();

  const size_t offset = static_cast<size_t>(blockIdx.x) * a.size;
  row.source = const_cast<T*>(static_cast<const T*>(a.x)) + offset;
#pragma unroll
  for (int i = 0; i < kKept; ++i)
    if (first + i * step < row.vectors)
      row.kept[i] = load_vector<kVector>(row.source, first + i * step);
  if (a.residual != nullptr)
    add_branch<T, kVector>(row, a, static_cast<T*>(a.residual) + offset);
  if (a.y == nullptr) return;
  const Statistics statistics = statistics_of(row, a);
  row.visit([&](int index, int slot, const Vector<T, kVector>& values) {
    const Vector<T, kVector> factors =
        slot < kKept ? kept_weight[slot] : load_vector<kVector>(weight, index);
    float result[kVector];
    normalize<T, kVector>(result, values, factors, static_cast<const T*>(a.bias), index,
                          statistics, a.weight_offset);
    Vector<T, kVector> rounded;
#pragma unroll
    for (int i = 0; i < kVector; ++i) rounded.values[i] = from_float<T>(result[i]);
    store_vector<kVector>(static_cast<T*>(a.y) + offset, index, rounded);
  });
}

template <typename T, int kVector>
int launch_norm(const awq_edge_norm& a, void* stream) {
  const int vectors = a.size / kVector;
  const int warps = (vectors + kWarpSize - 1) / kWarpSize;
  const int threads = warps * kWarpSize < kMaxThreads ? warps * kWarpSize : kMaxThreads;
  return launch("awq_edge_norm", norm_kernel<T, kVector>, dim3(a.rows), dim3(threads), 0, stream,
                a);
}

template <typename T>
int dispatch_norm(const awq_edge_norm& a, void* stream) {
  return fits_vectors(a.size) ? launch_norm<T, kVectorElements>(a, stream)
                              : launch_norm<T, 1>(a, stream);
}

}  // namespace
}  // namespace awq_edge

extern "C" int awq_edge_normalize(const awq_edge_norm* norm, void* stream) {
  AWQ_EDGE_REQUIRE(norm != nullptr, "%s: norm is null", __func__);
  const awq_edge_norm& a = *norm;
  AWQ_EDGE_REQUIRE(a.kind == AWQ_EDGE_NORM_RMS || a.kind == AWQ_EDGE_NORM_LAYER,
                   "%s: kind is %d; supported are %d (rms) and %d (layer)", __func__, a.kind,
                   AWQ_EDGE_NORM_RMS, AWQ_EDGE_NORM_LAYER);
  AWQ_EDGE_REQUIRE_TENSOR(a.x);
  AWQ_EDGE_REQUIRE_OPTIONAL(a.residual);
  AWQ_EDGE_REQUIRE_OPTIONAL(a.post_weight);
  AWQ_EDGE_REQUIRE_OPTIONAL(a.post_bias);
  AWQ_EDGE_REQUIRE_OPTIONAL(a.bias);
  AWQ_EDGE_REQUIRE_OPTIONAL(a.y);
  if (a.y != nullptr) AWQ_EDGE_REQUIRE_TENSOR(a.weight);
  AWQ_EDGE_REQUIRE(a.y != nullptr || a.residual != nullptr, "%s: y and residual are both null",
                   __func__);
  AWQ_EDGE_REQUIRE(a.residual == nullptr || a.residual != a.y,
                   "%s: residual and y are the same tensor; the sum would be lost", __func__);
  AWQ_EDGE_REQUIRE(a.residual != nullptr || a.post_weight == nullptr,
                   "%s: post_weight without a residual", __func__);
  AWQ_EDGE_REQUIRE(a.residual == nullptr || a.residual_scale != 0.0f,
                   "%s: residual_scale is 0; nothing would be added", __func__);
  AWQ_EDGE_REQUIRE_POSITIVE(a.rows);
  AWQ_EDGE_REQUIRE_POSITIVE(a.size);
  AWQ_EDGE_REQUIRE(a.eps >= 0.0f, "%s: eps is %g; it must be 0 or more", __func__, a.eps);
  AWQ_EDGE_REQUIRE_ACTIVATION(a.dtype);
  return a.dtype == AWQ_EDGE_FLOAT16 ? awq_edge::dispatch_norm<__half>(a, stream)
                                     : awq_edge::dispatch_norm<__nv_bfloat16>(a, stream);
}
