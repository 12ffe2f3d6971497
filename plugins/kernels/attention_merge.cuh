// The merge of partial softmaxes: over the warps of a block, then over the blocks that share the
// keys of a row tile. Both in a fixed order, so that the bits do not depend on timing.
#pragma once

#include "async_copy.cuh"
#include "attention_math.cuh"
#include "attention_partition.h"
#include "sequence_rows.h"

namespace awq_edge {

// Shared memory of the merge: outputs, maxima and sums of each warp; later the maxima and sums of
// each split.
constexpr size_t merge_bytes(int rows, int head_size) {
  const size_t warps = sizeof(float) * kDecodeWarps * rows * (head_size + 2);
  const size_t splits = sizeof(float) * 2 * kMaxSplits * rows;
  return warps > splits ? warps : splits;
}

// The running softmax of the queries 8 tile + 2t and + 1 of a lane. `sum` is of this lane's keys.
template <int kTiles>
struct RunningSoftmax {
  float maximum[kTiles][2];  // of scores
  float sum[kTiles][2];
};

// `merge`: outputs [warps, rows, d], then (maximum as exponent of 2, sum)
// [warps, rows].
template <int kHeadSize, int kTiles>
__device__ __forceinline__ void leave_in_shared(float* merge,
                                                const RunningSoftmax<kTiles>& softmax,
                                                float factor,
                                                float (&y)[kTiles][kHeadSize / 16][4], float unit,
                                                int warp, int lane) {
  constexpr int kRows = 8 * kTiles;
  const int g = lane / 4, t = lane % 4;
  float2* statistics = reinterpret_cast<float2*>(merge + kDecodeWarps * kRows * kHeadSize);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int row = warp * kRows + 8 * tile + 2 * t + c;
      float total = softmax.sum[tile][c];
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2)
        total += __shfl_xor_sync(0xffffffffu, total, offset);
      if (g == 0) statistics[row] = make_float2(softmax.maximum[tile][c] * factor, total);
#pragma unroll
      for (int m = 0; m < kHeadSize / 16; ++m)
        *reinterpret_cast<float2*>(merge + row * kHeadSize + output_channel<kHeadSize>(g, m)) =
            make_float2(y[tile][m][c] * unit, y[tile][m][c + 2] * unit);
    }
}

__device__ __forceinline__ void add_scaled(float4& sum, float weight, float4 value) {
  sum.x += weight * value.x, sum.y += weight * value.y;
  sum.z += weight * value.z, sum.w += weight * value.w;
}

__device__ __forceinline__ float4 shuffled(float4 value, int offset) {
  constexpr unsigned kAll = 0xffffffffu;
  return {__shfl_xor_sync(kAll, value.x, offset), __shfl_xor_sync(kAll, value.y, offset),
          __shfl_xor_sync(kAll, value.z, offset), __shfl_xor_sync(kAll, value.w, offset)};
}

template <typename T>
__device__ __forceinline__ void store_output(T* y, float4 value, float sum) {
  const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
  uint2 words;
  words.x = pack_pair<T>(value.x * inverse, value.y * inverse);
  words.y = pack_pair<T>(value.z * inverse, value.w * inverse);
  *reinterpret_cast<uint2*>(y) = words;
}

// Four channels of y of a row of a kv head's problem, from values and their sum relative to
// 2^maximum.
template <typename T, int kHeadSize>
__device__ __forceinline__ void store_channels(const awq_edge_attention& a, int b, int kv_head,
                                               int row, int channel, float4 value, float maximum,
                                               float sum) {
  const int heads_per_kv = a.num_heads / a.num_kv_heads;
  const int64_t token = sequence_rows(a.row_begin, b, a.tokens).first + row / heads_per_kv;
  const int head = kv_head * heads_per_kv + row % heads_per_kv;
  sum += sink_share<T>(a, head, maximum);
  store_output(static_cast<T*>(a.y) + (token * a.num_heads + head) * kHeadSize + channel, value,
               sum);
}

// Four channels of a row, relative to 2^maximum.
struct Merged {
  float4 value;
  float maximum;
  float sum;
};

template <int kHeadSize, int kRows>
__device__ __forceinline__ Merged merge_warps(const float* merge, int row, int channel) {
  const float2* statistics =
      reinterpret_cast<const float2*>(merge + kDecodeWarps * kRows * kHeadSize);
  Merged merged{{0, 0, 0, 0}, -INFINITY, 0.0f};
#pragma unroll
  for (int warp = 0; warp < kDecodeWarps; ++warp)
    merged.maximum = fmaxf(merged.maximum, statistics[warp * kRows + row].x);
  const float reference = reference_of(merged.maximum);
#pragma unroll
  for (int warp = 0; warp < kDecodeWarps; ++warp) {
    const float2 part = statistics[warp * kRows + row];
    const float weight = exp2_approximate(part.x - reference);
    merged.sum += weight * part.y;
    add_scaled(merged.value, weight,
               *reinterpret_cast<const float4*>(merge + (warp * kRows + row) * kHeadSize +
                                                channel));
  }
  return merged;
}

// True for the last of `active` blocks to arrive; then all of their partials are visible to
// it, and the counter is zero again.
__device__ __forceinline__ bool is_last_block(uint32_t* counter, int active) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1) == static_cast<uint32_t>(active) - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}

// Over the splits, by the last block. Partials of a row tile: [splits][rows * d outputs, then
// (maximum, sum) of the rows].
template <typename T, int kHeadSize, int kRows>
__device__ __forceinline__ void merge_splits(const awq_edge_attention& a, const float* partials,
                                             int active, int b, int kv_head, int first_row,
                                             int rows, float* shared) {
  constexpr int kThreads = 32 * kDecodeWarps;
  constexpr int kItemsPerRow = kHeadSize / 4;
  constexpr int kPartial = kRows * (kHeadSize + 2);
  float2* statistics = reinterpret_cast<float2*>(shared);  // [active, rows]
  for (int i = threadIdx.x; i < active * rows; i += kThreads)
    statistics[i] = __ldcg(reinterpret_cast<const float2*>(
        partials + static_cast<int64_t>(i / rows) * kPartial + kRows * kHeadSize +
        2 * (i % rows)));
  __syncthreads();
  const int items = rows * kItemsPerRow;
  const int groups = merge_groups(items, kThreads, active);
  const int group = threadIdx.x % groups;
  for (int first = 0; first < items; first += kThreads / groups) {
    const int item = first + threadIdx.x / groups;
    const bool valid = item < items;
    const int row = valid ? item / kItemsPerRow : 0;
    const int channel = valid ? 4 * (item % kItemsPerRow) : 0;
    float maximum = -INFINITY, sum = 0.0f;
    for (int split = 0; split < active; ++split)
      maximum = fmaxf(maximum, statistics[split * rows + row].x);
    const float reference = reference_of(maximum);
    for (int split = 0; split < active; ++split) {
      const float2 part = statistics[split * rows + row];
      sum += exp2_approximate(part.x - reference) * part.y;
    }
    float4 value{0, 0, 0, 0};
    const float* source = partials + row * kHeadSize + channel;
#pragma unroll 16
    for (int split = group; split < active; split += groups)
      add_scaled(value, exp2_approximate(statistics[split * rows + row].x - reference),
                 __ldcg(reinterpret_cast<const float4*>(
                     source + static_cast<int64_t>(split) * kPartial)));
    // The threads of an item are neighbours in a warp.
    for (int offset = 1; offset < groups; offset *= 2)
      add_scaled(value, 1.0f, shuffled(value, offset));
    if (valid && group == 0)
      store_channels<T, kHeadSize>(a, b, kv_head, first_row + row, channel, value, maximum, sum);
  }
}

// After leave_in_shared: y where this block has all the keys; else a partial, and y by the block
// that arrives last.
template <typename T, int kHeadSize, int kTiles>
__device__ __forceinline__ void merge_and_store(const awq_edge_attention& a,
                                                const DecodePlan& plan, int b, int kv_head,
                                                int row_tile, int split, int active, int first_row,
                                                int rows, float* merge, float* partials,
                                                uint32_t* counters) {
  constexpr int kRows = 8 * kTiles;
  constexpr int kItemsPerRow = kHeadSize / 4;
  constexpr int kPartial = kRows * (kHeadSize + 2);
  const int tile = (b * a.num_kv_heads + kv_head) * plan.row_tiles + row_tile;
  float* tile_partials = partials + static_cast<int64_t>(tile) * plan.splits * kPartial;
  float* own = tile_partials + static_cast<int64_t>(split) * kPartial;
  for (int item = threadIdx.x; item < rows * kItemsPerRow; item += 32 * kDecodeWarps) {
    const int row = item / kItemsPerRow, channel = 4 * (item % kItemsPerRow);
    const Merged merged = merge_warps<kHeadSize, kRows>(merge, row, channel);
    if (active == 1) {
      store_channels<T, kHeadSize>(a, b, kv_head, first_row + row, channel, merged.value,
                                   merged.maximum, merged.sum);
      continue;
    }
    *reinterpret_cast<float4*>(own + row * kHeadSize + channel) = merged.value;
    if (channel == 0)
      *reinterpret_cast<float2*>(own + kRows * kHeadSize + 2 * row) =
          make_float2(merged.maximum, merged.sum);
  }
  if (active == 1 || !is_last_block(counters + tile, active)) return;
  merge_splits<T, kHeadSize, kRows>(a, tile_partials, active, b, kv_head, first_row, rows, merge);
}

}  // namespace awq_edge
