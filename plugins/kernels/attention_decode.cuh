// Decode attention: few queries, many keys. The keys of a kv head are split over blocks
// (flash-decoding), within a block over warps, and each key is read once for all the query heads
// and tokens that share it. K and V go from global memory straight into mma fragments; see
// attention_fragments.h. Described in docs/kernels-attention.md.
#pragma once

#include "async_copy.cuh"
#include "attention.h"
#include "attention_math.cuh"
#include "attention_merge.cuh"
#include "attention_partition.h"
#include "attention_rows.cuh"

namespace awq_edge {

constexpr int kDecodeThreads = 32 * kDecodeWarps;

// What a lane loads from a row of the cache: 8 or 4 consecutive channels, as words of two values.
template <typename T, bool kInt8>
struct CacheRow;

template <typename T>
struct CacheRow<T, false> {
  using Element = T;
  using Eight = uint4;
  using Four = uint2;
  static __device__ __forceinline__ void expand(Eight raw, uint32_t (&words)[4]) {
    words[0] = raw.x, words[1] = raw.y, words[2] = raw.z, words[3] = raw.w;
  }
  static __device__ __forceinline__ void expand(Four raw, uint32_t (&words)[2]) {
    words[0] = raw.x, words[1] = raw.y;
  }
};

template <typename T>
struct CacheRow<T, true> {
  using Element = int8_t;
  using Eight = uint2;
  using Four = uint32_t;
  static __device__ __forceinline__ void expand(Eight raw, uint32_t (&words)[4]) {
    expand_codes<T>(raw.x, words[0], words[1]);
    expand_codes<T>(raw.y, words[2], words[3]);
  }
  static __device__ __forceinline__ void expand(Four raw, uint32_t (&words)[2]) {
    expand_codes<T>(raw, words[0], words[1]);
  }
};

// Past the L1 cache: read once, and in part written by this very kernel. Zero where not `valid`:
// what lies behind the filled positions may be NaN, and 0 * NaN would count.
template <typename Words, typename Element>
__device__ __forceinline__ Words load_words(const Element* pointer, bool valid) {
  return valid ? __ldcg(reinterpret_cast<const Words*>(pointer)) : Words{};
}

// 16 keys of K, or of V, in the registers of a warp.
template <typename T, int kHeadSize, bool kInt8>
struct KeyTile {
  using Row = CacheRow<T, kInt8>;
  static constexpr int kChunks = kHeadSize / 32;
  typename Row::Eight low[kChunks];   // key g
  typename Row::Eight high[kChunks];  // key g + 8

  __device__ __forceinline__ void load(const typename Row::Element* head, int key, int end,
                                       int lane) {
    const int g = lane / 4, t = lane % 4;
    const auto* row = head + static_cast<int64_t>(key + g) * kHeadSize;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const auto* words = row + key_channel(t, chunk);
      low[chunk] = load_words<typename Row::Eight>(words, key + g < end);
      high[chunk] = load_words<typename Row::Eight>(words + 8 * kHeadSize, key + g + 8 < end);
    }
  }
};

template <typename T, int kHeadSize, bool kInt8>
struct ValueTile {
  using Row = CacheRow<T, kInt8>;
  static constexpr int kChunks = kHeadSize / 64;
  static constexpr bool kHasRest = kHeadSize % 64 != 0;
  typename Row::Eight chunks[kChunks > 0 ? kChunks : 1][4];
  typename Row::Four rest[4];

  __device__ __forceinline__ void load(const typename Row::Element* head, int key, int end,
                                       int lane) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int row = 0; row < 4; ++row) {
      const int row_key = key + value_key(t, row);
      const auto* words = head + static_cast<int64_t>(row_key) * kHeadSize;
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk)
        chunks[chunk][row] = load_words<typename Row::Eight>(
            words + value_channel<kHeadSize>(g, chunk), row_key < end);
      if constexpr (kHasRest)
        rest[row] = load_words<typename Row::Four>(words + value_channel<kHeadSize>(g, kChunks),
                                                   row_key < end);
    }
  }
};

// Scales of keys g and g + 8 of a tile; 1 where the cache is not int8.
template <bool kInt8>
struct ScalePair {
  float low = 1.0f, high = 1.0f;
  __device__ __forceinline__ void load(const float* scales, int key, int end, int lane) {
    if constexpr (kInt8) {
      const int g = lane / 4;
      low = key + g < end ? __ldcg(scales + key + g) : 0.0f;
      high = key + g + 8 < end ? __ldcg(scales + key + g + 8) : 0.0f;
    }
  }
};

// scores^T [16 keys, 8 * kTiles queries] of a tile of K, not scaled yet.
template <typename T, int kHeadSize, bool kInt8, int kTiles>
__device__ __forceinline__ void key_products(float (&scores)[kTiles][4],
                                             const KeyTile<T, kHeadSize, kInt8>& keys,
                                             const T* queries, int lane) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[tile][i] = 0.0f;
#pragma unroll
  for (int chunk = 0; chunk < kHeadSize / 32; ++chunk) {
    uint32_t low[4], high[4];
    CacheRow<T, kInt8>::expand(keys.low[chunk], low);
    CacheRow<T, kInt8>::expand(keys.high[chunk], high);
    const uint32_t a0[4] = {low[0], high[0], low[1], high[1]};
    const uint32_t a1[4] = {low[2], high[2], low[3], high[3]};
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint4 q = *reinterpret_cast<const uint4*>(
          queries + (8 * tile + g) * query_stride<kHeadSize>() + key_channel(t, chunk));
      mma_16816<T>(scores[tile], a0, q.x, q.y);
      mma_16816<T>(scores[tile], a1, q.z, q.w);
    }
  }
}

// Rows of the mma from the words of four keys: channel pairs become key pairs.
__device__ __forceinline__ void pair_keys(uint32_t (&a)[4], uint32_t k0, uint32_t k1, uint32_t k8,
                                          uint32_t k9) {
  a[0] = __byte_perm(k0, k1, 0x5410);
  a[1] = __byte_perm(k0, k1, 0x7632);
  a[2] = __byte_perm(k8, k9, 0x5410);
  a[3] = __byte_perm(k8, k9, 0x7632);
}

// y^T += V^T P^T; `shares`: P^T as operand B.
template <typename T, int kHeadSize, bool kInt8, int kTiles>
__device__ __forceinline__ void add_values(float (&y)[kTiles][kHeadSize / 16][4],
                                           const ValueTile<T, kHeadSize, kInt8>& values,
                                           const uint32_t (&shares)[kTiles][2]) {
  using Row = CacheRow<T, kInt8>;
  constexpr int kChunks = kHeadSize / 64;
  const auto add = [&](int out, uint32_t k0, uint32_t k1, uint32_t k8, uint32_t k9) {
    uint32_t a[4];
    pair_keys(a, k0, k1, k8, k9);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
      mma_16816<T>(y[tile][out], a, shares[tile][0], shares[tile][1]);
  };
#pragma unroll
  for (int chunk = 0; chunk < kChunks; ++chunk) {
    uint32_t words[4][4];
#pragma unroll
    for (int row = 0; row < 4; ++row) Row::expand(values.chunks[chunk][row], words[row]);
#pragma unroll
    for (int e = 0; e < 4; ++e)
      add(4 * chunk + e, words[0][e], words[1][e], words[2][e], words[3][e]);
  }
  if constexpr (kHeadSize % 64 != 0) {
    uint32_t words[4][2];
#pragma unroll
    for (int row = 0; row < 4; ++row) Row::expand(values.rest[row], words[row]);
#pragma unroll
    for (int e = 0; e < 2; ++e)
      add(4 * kChunks + e, words[0][e], words[1][e], words[2][e], words[3][e]);
  }
}

// 8x8 values of 16 bits, transposed over the warp.
__device__ __forceinline__ uint32_t transposed(uint32_t rows) {
  uint32_t columns;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(columns) : "r"(rows));
  return columns;
}

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

// What a block works on.
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
  const int rows_left = a.tokens * heads_per_kv - block.first_row;
  block.rows = rows_left < plan.tile_rows ? rows_left : plan.tile_rows;
  block.past = clamped_past(a.past_length[block.b], a.context);
  const int last_row = block.first_row + block.rows - 1;
  const KeyRange keys = visible_keys(block.past, block.first_row / heads_per_kv,
                                     last_row / heads_per_kv, a.window, a.context);
  block.keys = key_split(keys, plan.splits, block.split);
  return block;
}

template <typename T, int kHeadSize>
__device__ __forceinline__ void load_query(const awq_edge_attention& a, const DecodeBlock& block,
                                           T* queries, int row, int lane) {
  const int heads_per_kv = a.num_heads / a.num_kv_heads;
  HeadRow<kHeadSize> values{};
  if (row < block.rows) {
    const int token = (block.first_row + row) / heads_per_kv;
    const int head = block.kv_head * heads_per_kv + (block.first_row + row) % heads_per_kv;
    const int64_t row_in = static_cast<int64_t>(block.b) * a.tokens + token;
    values = load_row<T, kHeadSize>(
        static_cast<const T*>(a.q) + row_in * a.q_stride + head * kHeadSize, a.rotary_size, lane);
    const int position = block.past + token < a.context ? block.past + token : a.context - 1;
    normalize_and_rotate(values, static_cast<const T*>(a.q_norm), a, position, lane);
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

// What the shares' V scales are divided by: the largest, or 1. Shares times scale / largest stay in
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
  using Element = typename CacheRow<T, kInt8>::Element;
  extern __shared__ __align__(16) unsigned char shared[];
  T* queries = reinterpret_cast<T*>(shared);
  float* merge = reinterpret_cast<float*>(shared + Shape::kQueryBytes);
  float* scratch = reinterpret_cast<float*>(shared + Shape::kQueryBytes + Shape::kMergeBytes);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;

  let_next_kernel_start();
  wait_for_previous_kernel();
  const DecodeBlock block = decode_block(a, plan);
  const KeyRange keys = block.keys.keys;
  if (keys.begin == keys.end && block.split != 0) return;

  const int64_t head = static_cast<int64_t>(block.b) * a.num_kv_heads + block.kv_head;
  const Element* key_head = static_cast<const Element*>(a.key_cache) + head * a.context * kHeadSize;
  const Element* value_head =
      static_cast<const Element*>(a.value_cache) + head * a.context * kHeadSize;
  const float* key_scale_head = kInt8 ? a.key_scales + head * a.context : nullptr;
  const float* value_scale_head = kInt8 ? a.value_scales + head * a.context : nullptr;

  KeyTile<T, kHeadSize, kInt8> key_tile;
  ValueTile<T, kHeadSize, kInt8> value_tile;
  ScalePair<kInt8> key_scale, value_scale;
  int key = keys.begin + kDecodeTileKeys * warp;
  const auto load_keys = [&](int first) {
    key_tile.load(key_head, first, keys.end, lane);
    key_scale.load(key_scale_head, first, keys.end, lane);
  };
  const auto load_values = [&](int first) {
    value_tile.load(value_head, first, keys.end, lane);
    value_scale.load(value_scale_head, first, keys.end, lane);
  };
  // A tile without new tokens need not wait for them.
  const bool is_old = key + kDecodeTileKeys <= block.past;
  if (is_old) load_keys(key), load_values(key);
  float largest = kInt8 ? largest_old_scale(value_scale_head, keys, block.past) : 0.0f;
  largest = fmaxf(largest,
                  prepare_rows<T, kHeadSize, Shape::kRows>(a, block, queries, warp, lane));
  if constexpr (kInt8) {
    largest = warp_max(largest);
    if (lane == 0) scratch[warp] = largest;
  }
  __syncthreads();
  if (!is_old) load_keys(key), load_values(key);
  const float value_unit = kInt8 ? value_unit_of(scratch) : 1.0f;
  const float per_unit = 1.0f / value_unit;

  const ScoreScale scale = score_scale(a);
  const int heads_per_kv = a.num_heads / a.num_kv_heads;
  int positions[kTiles][2];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
    for (int c = 0; c < 2; ++c)
      positions[tile][c] = block.past + (block.first_row + 8 * tile + 2 * t + c) / heads_per_kv;
  const int first_position = block.past + block.first_row / heads_per_kv;
  const int last_position =
      block.past + (block.first_row + block.rows - 1) / heads_per_kv;

  RunningSoftmax<kTiles> softmax;
  float y[kTiles][kHeadSize / 16][4];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    softmax.maximum[tile][0] = softmax.maximum[tile][1] = -INFINITY;
    softmax.sum[tile][0] = softmax.sum[tile][1] = 0.0f;
#pragma unroll
    for (int m = 0; m < kHeadSize / 16; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i) y[tile][m][i] = 0.0f;
  }

  for (; key < keys.end; key += kDecodeStepKeys) {
    float scores[kTiles][4];
    key_products<T, kHeadSize, kInt8, kTiles>(scores, key_tile, queries, lane);
    // The next keys are under way while this tile's scores and values are worked on, and the next
    // values during the next tile's scores: something is always being read.
    const ScalePair<kInt8> tile_scale = key_scale;
    load_keys(key + kDecodeStepKeys);
    const KeyRange tile_keys{key, key + kDecodeTileKeys};
    const bool masked = tile_keys.end > keys.end ||
                        !all_visible(tile_keys, first_position, last_position, a.window);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (kInt8) scores[tile][i] *= i < 2 ? tile_scale.low : tile_scale.high;
        if (scale.inner != 0.0f) scores[tile][i] = soft_capped(scores[tile][i], scale);
        const int score_key = key + g + (i < 2 ? 0 : 8);
        if (masked && (score_key >= keys.end ||
                       !is_visible(score_key, positions[tile][i & 1], a.window)))
          scores[tile][i] = -INFINITY;
      }
    uint32_t shares[kTiles][2];
    take_shares<T>(shares, scores, softmax, scale.factor, y,
                   kInt8 ? value_scale.low * per_unit : 1.0f,
                   kInt8 ? value_scale.high * per_unit : 1.0f);
    add_values<T, kHeadSize, kInt8, kTiles>(y, value_tile, shares);
    load_values(key + kDecodeStepKeys);
  }
  leave_in_shared<kHeadSize, kTiles>(merge, softmax, scale.factor, y, value_unit, warp, lane);
  __syncthreads();
  merge_and_store<T, kHeadSize, kTiles>(a, plan, block.b, block.kv_head, block.row_tile,
                                        block.split, block.keys.active, block.first_row,
                                        block.rows, merge, partials, counters);
}

}  // namespace awq_edge
