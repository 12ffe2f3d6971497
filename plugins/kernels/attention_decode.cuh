// Decode attention: few queries, many keys. The keys of a kv head are split over blocks
// (flash-decoding), within a block over warps, and each key is read once for all the query heads
// and tokens that share it. K and V go from global memory straight into mma fragments; see
// attention_decode_tiles.cuh. Described in docs/kernels-attention.md.
#pragma once

#include "async_copy.cuh"
#include "attention.h"
#include "attention_decode_tiles.cuh"
#include "attention_math.cuh"
#include "attention_merge.cuh"
#include "attention_partition.h"
#include "attention_rows.cuh"

namespace awq_edge {

constexpr int kDecodeThreads = 32 * kDecodeWarps;

// Scores of a tile become shares P^T, and what was summed up to now is brought to the new maximum.
template <typename T, int kMmaTiles, int kTiles>
__device__ __forceinline__ void take_shares(uint32_t (&shares)[kTiles][2],
                                            float (&scores)[kTiles][4],
                                            RunningSoftmax<kTiles>& softmax, float factor,
                                            float (&y)[kTiles][kMmaTiles][4], float value_low,
                                            float value_high) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    float correction[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float maximum = fmaxf(scores[tile][c], scores[tile][c + 2]);
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2)
        maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, offset));
      maximum = fmaxf(maximum, softmax.maximum[tile][c]);
      const float reference = reference_of(maximum) * factor;
      correction[c] = exp2_approximate(softmax.maximum[tile][c] * factor - reference);
      softmax.maximum[tile][c] = maximum;
      scores[tile][c] = exp2_approximate(scores[tile][c] * factor - reference);
      scores[tile][c + 2] = exp2_approximate(scores[tile][c + 2] * factor - reference);
      softmax.sum[tile][c] =
          softmax.sum[tile][c] * correction[c] + scores[tile][c] + scores[tile][c + 2];
    }
#pragma unroll
    for (int m = 0; m < kMmaTiles; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) y[tile][m][i] *= correction[i & 1];
    shares[tile][0] =
        transposed(pack_pair<T>(scores[tile][0] * value_low, scores[tile][1] * value_low));
    shares[tile][1] =
        transposed(pack_pair<T>(scores[tile][2] * value_high, scores[tile][3] * value_high));
  }
}

// The work of a block.
struct DecodeBlock {
  int b, kv_head, row_tile, split;
  int past, first_row, rows;
  KeySplit keys;
};

__device__ __forceinline__ DecodeBlock decode_block(const awq_edge_attention& a,
                                                    const DecodePlan& plan) {
  DecodeBlock block;
  block.row_tile = blockIdx.x % plan.row_tiles;
  block.split = blockIdx.x / plan.row_tiles;
  block.kv_head = blockIdx.y;
  block.b = blockIdx.z;
  const int heads_per_kv = a.num_heads / a.num_kv_heads;
  block.first_row = block.row_tile * plan.tile_rows;
  const int tokens = sequence_rows(a.row_begin, block.b, a.tokens).count;
  const int rows_left = tokens * heads_per_kv - block.first_row;
  block.rows = rows_left < plan.tile_rows ? rows_left : plan.tile_rows;
  block.past = clamped_past(a.past_length[block.b], a.context);
  const int last_row = block.first_row + block.rows - 1;
  const KeyRange keys = visible_keys(block.past, block.first_row / heads_per_kv,
                                     last_row / heads_per_kv, a.window, a.context);
  block.keys = key_split(keys, plan.splits, block.split);
  return block;
}

// Positions of a block's rows, and of the rows 8 tile + 2t and + 1, whose scores a lane has.
template <int kTiles>
struct RowPositions {
  int of_lane[kTiles][2];
  int first;
  int last;

  __device__ __forceinline__ RowPositions(const DecodeBlock& block, int heads_per_kv, int lane) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int c = 0; c < 2; ++c)
        of_lane[tile][c] =
            block.past + (block.first_row + 8 * tile + 2 * (lane % 4) + c) / heads_per_kv;
    first = block.past + block.first_row / heads_per_kv;
    last = block.past + (block.first_row + block.rows - 1) / heads_per_kv;
  }
};

// Products of the tile of keys from `key` on become scores; `end`: of the block's keys.
template <bool kInt8, int kTiles>
__device__ __forceinline__ void scale_and_mask(float (&scores)[kTiles][4],
                                               const ScalePair<kInt8>& key_scale,
                                               ScoreScale scale, int key, int end,
                                               const RowPositions<kTiles>& positions, int window,
                                               int lane) {
  const KeyRange tile_keys{key, key + kDecodeTileKeys};
  const bool masked =
      tile_keys.end > end || !all_visible(tile_keys, positions.first, positions.last, window);
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (kInt8) scores[tile][i] *= i < 2 ? key_scale.low : key_scale.high;
      if (scale.inner != 0.0f) scores[tile][i] = soft_capped(scores[tile][i], scale);
      const int score_key = key + lane / 4 + (i < 2 ? 0 : 8);
      if (masked && (score_key >= end ||
                     !is_visible(score_key, positions.of_lane[tile][i & 1], window)))
        scores[tile][i] = -INFINITY;
    }
}

template <int kHeadSize, int kTiles>
__device__ __forceinline__ void clear(RunningSoftmax<kTiles>& softmax,
                                      float (&y)[kTiles][kHeadSize / 16][4]) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    softmax.maximum[tile][0] = softmax.maximum[tile][1] = -INFINITY;
    softmax.sum[tile][0] = softmax.sum[tile][1] = 0.0f;
#pragma unroll
    for (int m = 0; m < kHeadSize / 16; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) y[tile][m][i] = 0.0f;
  }
}

template <typename T, int kHeadSize>
__device__ __forceinline__ void load_query(const awq_edge_attention& a, const DecodeBlock& block,
                                           T* queries, int row, int lane) {
  const int heads_per_kv = a.num_heads / a.num_kv_heads;
  HeadRow<kHeadSize> values{};
  if (row < block.rows) {
    const int token = (block.first_row + row) / heads_per_kv;
    const int head = block.kv_head * heads_per_kv + (block.first_row + row) % heads_per_kv;
    const int64_t row_in = sequence_rows(a.row_begin, block.b, a.tokens).first + token;
    values = load_row<T, kHeadSize>(
        static_cast<const T*>(a.q) + row_in * a.q_stride + head * kHeadSize, a.rotary_size, lane);
    const int position = block.past + token < a.context ? block.past + token : a.context - 1;
    normalize_and_rotate(values, static_cast<const T*>(a.q_norm), a, {block.b, row_in, position},
                         lane);
  }
  store_row(values, queries + row * query_stride<kHeadSize>(), a.rotary_size, lane);
}

// The queries into shared memory, and the new tokens among the block's keys into the cache, one row
// a warp. Row tiles of one kv head may each append the same bytes to the same place, so that none
// of them has to wait for another. Returns the largest scale of the values that the warp appended.
template <typename T, int kHeadSize, int kRows>
__device__ __forceinline__ float prepare_rows(const awq_edge_attention& a,
                                              const DecodeBlock& block, T* queries, int warp,
                                              int lane) {
  const KeyRange keys = block.keys.keys;
  const int first = keys.begin > block.past ? keys.begin : block.past;
  const int new_rows = keys.end > first ? 2 * (keys.end - first) : 0;
  float largest = 0.0f;
  for (int i = warp; i < new_rows + kRows; i += kDecodeWarps) {
    if (i >= new_rows) {
      load_query<T, kHeadSize>(a, block, queries, i - new_rows, lane);
      continue;
    }
    const int position = first + i / 2;
    const float scale = append_row<T, kHeadSize>(a, i % 2 == 0, block.b, position - block.past,
                                                 block.kv_head, position, lane);
    if (i % 2 == 1) largest = fmaxf(largest, scale);
  }
  return largest;
}

// The largest scale of the values that were there before this call, among the block's keys; of this
// lane's part of them.
__device__ __forceinline__ float largest_old_scale(const float* scales, KeyRange keys, int past) {
  const int end = keys.end < past ? keys.end : past;
  float largest = 0.0f;
#pragma unroll 4
  for (int key = keys.begin + threadIdx.x; key < end; key += kDecodeThreads)
    largest = fmaxf(largest, __ldcg(scales + key));
  return largest;
}

// The divisor of the shares' V scales: the largest, or 1. Shares times scale / largest stay in
// T's range however small the scales are.
__device__ __forceinline__ float value_unit_of(const float* largest_of_warps) {
  float largest = largest_of_warps[0];
#pragma unroll
  for (int warp = 1; warp < kDecodeWarps; ++warp) largest = fmaxf(largest, largest_of_warps[warp]);
  return largest > 0.0f ? largest : 1.0f;
}

template <typename T, int kHeadSize, bool kInt8, int kTiles>
struct DecodeShape {
  static constexpr int kRows = 8 * kTiles;
  static constexpr int kBlocksPerSm = kHeadSize * kTiles <= 64 ? 2 : 1;
  static constexpr size_t kQueryBytes = kRows * (kHeadSize + 32) * sizeof(T);
  static constexpr size_t kMergeBytes = merge_bytes(kRows, kHeadSize);
  static constexpr size_t kSharedBytes = kQueryBytes + kMergeBytes + sizeof(float) * kDecodeWarps;
};

template <typename T, int kHeadSize, bool kInt8, int kTiles>
__global__ void __launch_bounds__(kDecodeThreads,
                                  DecodeShape<T, kHeadSize, kInt8, kTiles>::kBlocksPerSm)
    decode_attention(const __grid_constant__ awq_edge_attention a,
                     const __grid_constant__ DecodePlan plan, float* partials,
                     uint32_t* counters) {
  using Shape = DecodeShape<T, kHeadSize, kInt8, kTiles>;
  extern __shared__ __align__(16) unsigned char shared[];
  T* queries = reinterpret_cast<T*>(shared);
  float* merge = reinterpret_cast<float*>(shared + Shape::kQueryBytes);
  float* scratch = reinterpret_cast<float*>(shared + Shape::kQueryBytes + Shape::kMergeBytes);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  let_next_kernel_start();
  wait_for_previous_kernel();
  const DecodeBlock block = decode_block(a, plan);
  const KeyRange keys = block.keys.keys;
  if (block.rows <= 0 || (keys.begin == keys.end && block.split != 0)) return;

  HeadReader<T, kHeadSize, kInt8> reader(a, block.b, block.kv_head);
  int key = keys.begin + kDecodeTileKeys * warp;
  // A tile without new tokens need not wait for them.
  const bool is_old = key + kDecodeTileKeys <= block.past;
  if (is_old) reader.load_keys(key, keys.end, lane), reader.load_values(key, keys.end, lane);
  float largest = kInt8 ? largest_old_scale(reader.value_scales, keys, block.past) : 0.0f;
  largest = fmaxf(largest,
                  prepare_rows<T, kHeadSize, Shape::kRows>(a, block, queries, warp, lane));
  if constexpr (kInt8) {
    largest = warp_max(largest);
    if (lane == 0) scratch[warp] = largest;
  }
  __syncthreads();
  if (!is_old) reader.load_keys(key, keys.end, lane), reader.load_values(key, keys.end, lane);
  const float value_unit = kInt8 ? value_unit_of(scratch) : 1.0f;
  const float per_unit = 1.0f / value_unit;

  const ScoreScale scale = score_scale(a);
  const RowPositions<kTiles> positions(block, a.num_heads / a.num_kv_heads, lane);
  RunningSoftmax<kTiles> softmax;
  float y[kTiles][kHeadSize / 16][4];
  clear<kHeadSize, kTiles>(softmax, y);

  for (; key < keys.end; key += kDecodeStepKeys) {
    float scores[kTiles][4];
    key_products<T, kHeadSize, kInt8, kTiles>(scores, reader.key_tile, queries, lane);
    // The next keys are under way while this tile's scores and values are worked on, and the next
    // values during the next tile's scores: something is always being read.
    const ScalePair<kInt8> key_scale = reader.key_scale;
    reader.load_keys(key + kDecodeStepKeys, keys.end, lane);
    scale_and_mask<kInt8, kTiles>(scores, key_scale, scale, key, keys.end, positions, a.window,
                                  lane);
    uint32_t shares[kTiles][2];
    take_shares<T>(shares, scores, softmax, scale.factor, y,
                   kInt8 ? reader.value_scale.low * per_unit : 1.0f,
                   kInt8 ? reader.value_scale.high * per_unit : 1.0f);
    add_values<T, kHeadSize, kInt8, kTiles>(y, reader.value_tile, shares);
    reader.load_values(key + kDecodeStepKeys, keys.end, lane);
  }
  leave_in_shared<kHeadSize, kTiles>(merge, softmax, scale.factor, y, value_unit, warp, lane);
  __syncthreads();
  merge_and_store<T, kHeadSize, kTiles>(a, plan, block.b, block.kv_head, block.row_tile,
                                        block.split, block.keys.active, block.first_row,
                                        block.rows, merge, partials, counters);
}

}  // namespace awq_edge
