// K and V in the decode kernel: loaded from the cache into registers, where they are operands of
// the mma already. See attention_fragments.h for what lies where.
#pragma once

#include "attention_fragments.h"
#include "attention_math.cuh"

namespace awq_edge {

// The share of a lane of a row of the cache: 8 or 4 consecutive channels, as words of two values.
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

// A head of the cache on its way through the registers of a warp, tile by tile.
template <typename T, int kHeadSize, bool kInt8>
struct HeadReader {
  using Element = typename CacheRow<T, kInt8>::Element;
  const Element* keys;  // [c, d]
  const Element* values;
  const float* key_scales;  // [c]; null unless the cache is int8
  const float* value_scales;
  KeyTile<T, kHeadSize, kInt8> key_tile;
  ValueTile<T, kHeadSize, kInt8> value_tile;
  ScalePair<kInt8> key_scale, value_scale;

  __device__ __forceinline__ HeadReader(const awq_edge_attention& a, int b, int kv_head) {
    const int64_t head = static_cast<int64_t>(b) * a.num_kv_heads + kv_head;
    keys = static_cast<const Element*>(a.key_cache) + head * a.context * kHeadSize;
    values = static_cast<const Element*>(a.value_cache) + head * a.context * kHeadSize;
    key_scales = kInt8 ? a.key_scales + head * a.context : nullptr;
    value_scales = kInt8 ? a.value_scales + head * a.context : nullptr;
  }

  __device__ __forceinline__ void load_keys(int first, int end, int lane) {
    key_tile.load(keys, first, end, lane);
    key_scale.load(key_scales, first, end, lane);
  }

  __device__ __forceinline__ void load_values(int first, int end, int lane) {
    value_tile.load(values, first, end, lane);
    value_scale.load(value_scales, first, end, lane);
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

}  // namespace awq_edge
