// Shared-memory tiles of prefill attention: queries, normalized and rotated there, and K and V as
// they come from the cache.
#pragma once

#include "async_copy.cuh"
#include "attention.h"
#include "attention_math.cuh"
#include "attention_partition.h"
#include "attention_rows.cuh"

namespace awq_edge {

constexpr int kPrefillWarps = 4;
constexpr int kPrefillThreads = 32 * kPrefillWarps;

// Row tiles of 16 queries a warp. Two: each fragment of K and V is read from shared memory for
// both. One: more and smaller blocks, and all that the registers hold with 256 channels.
template <int kChannels, int kRowTilesOfWarp>
struct PrefillShape {
  static constexpr int kHeadSize = kChannels;
  static constexpr int kRowTiles = kRowTilesOfWarp;
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kWarpRows * kPrefillWarps;
  static constexpr int kKeys = kHeadSize <= 128 ? 64 : 32;
  static constexpr int kOutTiles = kHeadSize / 8;
  static constexpr int kKeyTiles = kKeys / 8;
  static constexpr int kBlocksPerSm = kHeadSize > 128 || kRowTiles > 1 ? 2 : 3;  // by registers

  static constexpr size_t shared_bytes(bool int8) {
    const size_t tile = static_cast<size_t>(kKeys) * kHeadSize;
    return 2 * (static_cast<size_t>(kRows) * kHeadSize + 2 * tile) +
           (int8 ? 2 * (tile + kKeys * sizeof(float)) : 0);
  }
};

__device__ __forceinline__ void copy_async_4(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(bytes));
}

// function(row, channel) for the chunks of kChannels channels of a tile that are this thread's. A
// row's chunks are a power of two, or three times one: then a thread takes three of a row.
template <int kHeadSize, int kRows, int kChannels, typename Function>
__device__ __forceinline__ void for_each_chunk(Function function) {
  constexpr int kChunks = kHeadSize / kChannels;
  constexpr int kChunksOfThread = kChunks % 3 == 0 ? 3 : 1;
  constexpr int kThreadsOfRow = kChunks / kChunksOfThread;
  constexpr int kRowsOfRound = kPrefillThreads / kThreadsOfRow;
  static_assert(kRows % kRowsOfRound == 0, "whole rounds of the block");
  const int channel = kChannels * (threadIdx.x % kThreadsOfRow);
#pragma unroll
  for (int round = 0; round < kRows / kRowsOfRound; ++round)
#pragma unroll
    for (int i = 0; i < kChunksOfThread; ++i)
      function(round * kRowsOfRound + threadIdx.x / kThreadsOfRow,
               channel + i * kThreadsOfRow * kChannels);
}

// 16 bytes by 16 bytes; `source`: row 0, `stride`: elements from row to row. Rows from `rows` on
// are zero.
template <int kHeadSize, int kRows, int kChannels, typename Element, typename Destination>
__device__ __forceinline__ void copy_rows(const Element* source, int64_t stride, int rows,
                                          Destination destination) {
  for_each_chunk<kHeadSize, kRows, kChannels>([&](int row, int channel) {
    const bool valid = row < rows;
    copy_async_16(destination(row, channel), source + (valid ? row : 0) * stride + channel,
                  valid ? 16 : 0);
  });
}

// A tile of K or V on its way from the cache to shared memory. float16 and bfloat16 go there
// directly; int8 codes go to `codes` first, and each thread expands what it copied itself. Codes
// are exact in T; their scales multiply the scores, or the shares.
template <typename T, typename Shape>
struct CacheTile {
  T* tile;        // [keys, d], swizzled
  int8_t* codes;  // [keys, d]; null unless the cache is int8

  // `first`: the tile's first position, counted from the beginning of the cache [b, g, c, d]. Rows
  // from `rows` on are zero, whatever the cache holds there.
  __device__ __forceinline__ void copy(const void* cache, int64_t first, int rows) const {
    constexpr int kHeadSize = Shape::kHeadSize;
    if (codes != nullptr)
      copy_rows<kHeadSize, Shape::kKeys, 16>(
          static_cast<const int8_t*>(cache) + first * kHeadSize, kHeadSize, rows,
          [&](int row, int channel) { return codes + row * kHeadSize + channel; });
    else
      copy_rows<kHeadSize, Shape::kKeys, 8>(
          static_cast<const T*>(cache) + first * kHeadSize, kHeadSize, rows,
          [&](int row, int channel) { return tile + swizzled<kHeadSize>(row, channel); });
  }

  // After wait_copies; afterwards a barrier is needed.
  __device__ __forceinline__ void expand() const {
    if (codes == nullptr) return;
    for_each_chunk<Shape::kHeadSize, Shape::kKeys, 16>([&](int row, int channel) {
      const uint4 raw = *reinterpret_cast<const uint4*>(codes + row * Shape::kHeadSize + channel);
      uint4 low, high;
      expand_codes<T>(raw.x, low.x, low.y);
      expand_codes<T>(raw.y, low.z, low.w);
      expand_codes<T>(raw.z, high.x, high.y);
      expand_codes<T>(raw.w, high.z, high.w);
      *reinterpret_cast<uint4*>(tile + swizzled<Shape::kHeadSize>(row, channel)) = low;
      *reinterpret_cast<uint4*>(tile + swizzled<Shape::kHeadSize>(row, channel + 8)) = high;
    });
  }
};

// The scales of a tile of an int8 cache: of K [keys], then of V [keys]. Sources: of this head.
template <typename Shape>
__device__ __forceinline__ void copy_scales(float* tile, const float* key_scales,
                                            const float* value_scales, int first_key,
                                            KeyRange visible) {
  constexpr int kKeys = Shape::kKeys;
  static_assert(2 * kKeys <= kPrefillThreads, "one scale a thread");
  if (threadIdx.x >= 2 * kKeys) return;
  const int key = first_key + threadIdx.x % kKeys;
  const bool valid = key < visible.end;
  copy_async_4(tile + threadIdx.x,
               (threadIdx.x < kKeys ? key_scales : value_scales) + (valid ? key : first_key),
               valid ? 4 : 0);
}

// The block's queries [rows, d], swizzled: copied, then normalized and rotated in place.
template <typename T, typename Shape>
struct QueryTile {
  static constexpr int kRows = Shape::kRows;
  T* tile;

  // Rows behind the last token are zero.
  __device__ __forceinline__ void copy(const awq_edge_attention& a, int b, int head,
                                       int first_token) const {
    const SequenceRows rows = sequence_rows(a.row_begin, b, a.tokens);
    copy_rows<Shape::kHeadSize, kRows, 8>(
        static_cast<const T*>(a.q) + (rows.first + first_token) * a.q_stride +
            head * Shape::kHeadSize,
        a.q_stride, rows.count - first_token,
        [&](int r, int channel) { return tile + swizzled<Shape::kHeadSize>(r, channel); });
    commit_copies();
  }

  // After a barrier; another one is needed afterwards. `factors`: shared memory for kRows floats.
  // first_position: of token `first_token` of sequence b.
  __device__ __forceinline__ void prepare(const awq_edge_attention& a, int b, int first_token,
                                          int first_position, float* factors) const {
    const T* norm = static_cast<const T*>(a.q_norm);
    if (norm != nullptr) {
      if (threadIdx.x < kRows) factors[threadIdx.x] = norm_factor(threadIdx.x, a.norm_eps);
      __syncthreads();
    }
    if (a.rotary_size % 16 == 0 && a.positions == nullptr)
      prepare_chunks(a, norm, b, first_position, factors);
    else
      prepare_pairs(a, norm, b, first_token, first_position, factors);
  }

 private:
  __device__ __forceinline__ float norm_factor(int row, float eps) const {
    float sum = 0.0f;
#pragma unroll
    for (int channel = 0; channel < Shape::kHeadSize; channel += 8) {
      float x[8];
      load_eight(row, channel, x);
#pragma unroll
      for (int i = 0; i < 8; ++i) sum += x[i] * x[i];
    }
    return rsqrtf(sum / Shape::kHeadSize + eps);
  }

  // Two chunks of 8 channels a time: those that rotate with each other, or neighbours.
  __device__ __forceinline__ void prepare_chunks(const awq_edge_attention& a, const T* norm, int b,
                                                 int first_position,
                                                 const float* factors) const {
    if (a.rotary_size == 0 && norm == nullptr) return;
    const int64_t first_table = first_table_row(a, b);
    constexpr int kPairs = Shape::kHeadSize / 16;
    static_assert(kRows * kPairs % kPrefillThreads == 0, "whole rounds of the block");
#pragma unroll 2
    for (int i = threadIdx.x; i < kRows * kPairs; i += kPrefillThreads) {
      const int row = i / kPairs, pair = i % kPairs;
      const ChannelPair chunks = channel_pair(pair, a.rotary_size / 8);
      float first[8], second[8], cosine[8], sine[8];
      const bool rotates = pair < a.rotary_size / 16;
      if (rotates) {
        const int position = limited(first_position + row, a.context);
        const int64_t table = (first_table + position) * (a.rotary_size / 2) + 8 * pair;
        load_floats(a.cosine + table, cosine);
        load_floats(a.sine + table, sine);
      }
      load_eight(row, 8 * chunks.first, first);
      load_eight(row, 8 * chunks.second, second);
      if (norm != nullptr) {
        apply_norm(norm + 8 * chunks.first, a.norm_offset, factors[row], first);
        apply_norm(norm + 8 * chunks.second, a.norm_offset, factors[row], second);
      }
      if (rotates) {
#pragma unroll
        for (int c = 0; c < 8; ++c) {
          const float x = first[c], y = second[c];
          first[c] = x * cosine[c] - y * sine[c];
          second[c] = y * cosine[c] + x * sine[c];
        }
      }
      store_eight(row, 8 * chunks.first, first);
      store_eight(row, 8 * chunks.second, second);
    }
  }

  // Any even rotary_size and any positions, channel by channel.
  __device__ __forceinline__ void prepare_pairs(const awq_edge_attention& a, const T* norm, int b,
                                                int first_token, int first_position,
                                                const float* factors) const {
    constexpr int kPairs = Shape::kHeadSize / 2;
    const SequenceRows rows = sequence_rows(a.row_begin, b, a.tokens);
    for (int i = threadIdx.x; i < kRows * kPairs; i += kPrefillThreads) {
      const int row = i / kPairs, pair = i % kPairs, half = a.rotary_size / 2;
      const ChannelPair channels = channel_pair(pair, a.rotary_size);
      T& first = tile[swizzled<Shape::kHeadSize>(row, channels.first)];
      T& second = tile[swizzled<Shape::kHeadSize>(row, channels.second)];
      float x = to_float(first), y = to_float(second);
      if (norm != nullptr) {
        x *= factors[row] * (to_float(norm[channels.first]) + a.norm_offset);
        y *= factors[row] * (to_float(norm[channels.second]) + a.norm_offset);
      }
      // Rows behind the last token are zero, and have no positions.
      if (pair < half && first_token + row < rows.count) {
        const RotatedToken token{b, rows.first + first_token + row,
                                 limited(first_position + row, a.context)};
        const int64_t table = table_row(a, token, pair) * half + pair;
        const float cosine = a.cosine[table], sine = a.sine[table], unrotated = x;
        x = x * cosine - y * sine;
        y = y * cosine + unrotated * sine;
      }
      first = from_float<T>(x);
      second = from_float<T>(y);
    }
  }

  // Positions behind the tables are of tokens whose outputs are undefined.
  static __device__ __forceinline__ int limited(int position, int context) {
    return position < context ? position : context - 1;
  }

  static __device__ __forceinline__ void load_floats(const float* source, float (&x)[8]) {
    const float4 low = __ldg(reinterpret_cast<const float4*>(source));
    const float4 high = __ldg(reinterpret_cast<const float4*>(source) + 1);
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
    x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
  }

  static __device__ __forceinline__ void apply_norm(const T* norm, float offset, float factor,
                                                    float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] *= factor * (to_float(norm[i]) + offset);
  }

  __device__ __forceinline__ void load_eight(int row, int channel, float (&x)[8]) const {
    const uint4 raw =
        *reinterpret_cast<const uint4*>(tile + swizzled<Shape::kHeadSize>(row, channel));
    const T* values = reinterpret_cast<const T*>(&raw);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = to_float(values[i]);
  }

  __device__ __forceinline__ void store_eight(int row, int channel, const float (&x)[8]) const {
    *reinterpret_cast<uint4*>(tile + swizzled<Shape::kHeadSize>(row, channel)) =
        make_uint4(pack_pair<T>(x[0], x[1]), pack_pair<T>(x[2], x[3]), pack_pair<T>(x[4], x[5]),
                   pack_pair<T>(x[6], x[7]));
  }
};

}  // namespace awq_edge
