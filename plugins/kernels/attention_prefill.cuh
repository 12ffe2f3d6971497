// Prefill attention in the flash style: a block has a tile of queries of one head, goes through
// the keys it can see tile by tile, and never writes a score to memory. Described in
// docs/kernels-attention.md.
#pragma once

#include "async_copy.cuh"
#include "attention.h"
#include "attention_math.cuh"
#include "attention_partition.h"
#include "attention_rows.cuh"

namespace awq_edge {

constexpr int kPrefillWarps = 4;
constexpr int kPrefillThreads = 32 * kPrefillWarps;

template <int kHeadSize>
struct PrefillShape {
  // Two row tiles of 16 a warp: each fragment of K and V is read from shared memory for both. The
  // accumulators of 256 channels leave registers for one.
  static constexpr int kRowTiles = kHeadSize <= 128 ? 2 : 1;
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kWarpRows * kPrefillWarps;
  static constexpr int kKeys = kHeadSize <= 128 ? 64 : 32;
  static constexpr int kOutTiles = kHeadSize / 8;
  static constexpr int kKeyTiles = kKeys / 8;

  static constexpr size_t shared_bytes(bool int8) {
    const size_t tile = static_cast<size_t>(kKeys) * kHeadSize;
    return 2 * (static_cast<size_t>(kRows) * kHeadSize + 2 * tile) + (int8 ? 2 * tile : 0);
  }
};

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row));
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row));
}

// A tile of K or V on its way from the cache to shared memory. float16 and bfloat16 go there
// directly; int8 codes go to `codes` first, and each thread expands what it copied itself.
template <typename T, int kHeadSize>
struct CacheTile {
  static constexpr int kKeys = PrefillShape<kHeadSize>::kKeys;
  T* tile;                 // [keys, d], swizzled
  int8_t* codes;           // [keys, d]; null unless the cache is int8
  const void* cache;       // of this head: [c, d]
  const float* scales;     // of this head: [c]

  // first_key is at least visible.begin. Rows behind `visible` are zero, whatever the cache holds
  // there.
  __device__ __forceinline__ void copy(int first_key, KeyRange visible) const {
    const bool int8 = codes != nullptr;
    if (int8)
      copy_rows<16>(static_cast<const int8_t*>(cache), first_key, visible,
                    [&](int row, int channel) { return codes + row * kHeadSize + channel; });
    else
      copy_rows<8>(static_cast<const T*>(cache), first_key, visible, [&](int row, int channel) {
        return tile + swizzled<kHeadSize>(row, channel);
      });
    commit_copies();
  }

  // After wait_copies; afterwards a barrier is needed.
  __device__ __forceinline__ void expand(int first_key, KeyRange visible) const {
    if (codes == nullptr) return;
    constexpr int kChunks = kHeadSize / 16;
    constexpr int kChunksOfThread = kChunks % 3 == 0 ? 3 : 1;
    constexpr int kThreadsOfRow = kChunks / kChunksOfThread;
#pragma unroll 1
    for (int i = threadIdx.x; i < kKeys * kThreadsOfRow; i += kPrefillThreads) 
      for (int c = 0; c < kChunksOfThread; ++c) {
      const int row = i / kThreadsOfRow, key = first_key + row;
      const int channel = 16 * (i % kThreadsOfRow + c * kThreadsOfRow);
      const float scale = key < visible.end ? __ldcg(scales + key) : 0.0f;
      const uint4 raw = *reinterpret_cast<const uint4*>(codes + row * kHeadSize + channel);
      const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
      uint32_t values[8];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float first = static_cast<float>(static_cast<int8_t>(words[w]));
        const float second = static_cast<float>(static_cast<int8_t>(words[w] >> 8));
        const float third = static_cast<float>(static_cast<int8_t>(words[w] >> 16));
        const float fourth = static_cast<float>(static_cast<int8_t>(words[w] >> 24));
        values[2 * w] = pack_pair<T>(first * scale, second * scale);
        values[2 * w + 1] = pack_pair<T>(third * scale, fourth * scale);
      }
      *reinterpret_cast<uint4*>(tile + swizzled<kHeadSize>(row, channel)) =
          make_uint4(values[0], values[1], values[2], values[3]);
      *reinterpret_cast<uint4*>(tile + swizzled<kHeadSize>(row, channel + 8)) =
          make_uint4(values[4], values[5], values[6], values[7]);
    }
  }

 private:
  template <int kChannels, typename Element, typename Destination>
  __device__ __forceinline__ void copy_rows(const Element* source, int first_key, KeyRange visible,
                                            Destination destination) const {
    constexpr int kChunks = kHeadSize / kChannels;
    // A row's chunks are a power of two, or three times one: then a thread takes three.
    constexpr int kChunksOfThread = kChunks % 3 == 0 ? 3 : 1;
    constexpr int kThreadsOfRow = kChunks / kChunksOfThread;
    constexpr int kRowsOfRound = kPrefillThreads / kThreadsOfRow;
    static_assert(kKeys % kRowsOfRound == 0, "whole rounds of the block");
    const int channel = kChannels * (threadIdx.x % kThreadsOfRow);
#pragma unroll
    for (int round = 0; round < kKeys / kRowsOfRound; ++round) {
      const int row = round * kRowsOfRound + threadIdx.x / kThreadsOfRow, key = first_key + row;
      const bool valid = key < visible.end;
      const Element* from =
          source + static_cast<int64_t>(valid ? key : first_key) * kHeadSize + channel;
#pragma unroll
      for (int i = 0; i < kChunksOfThread; ++i) {
        const int offset = i * kThreadsOfRow * kChannels;
        copy_async_16(destination(row, channel + offset), from + offset, valid ? 16 : 0);
      }
    }
  }
};

// The block's queries, normalized and rotated, into shared memory; rows behind the last token are
// zero.
template <typename T, int kHeadSize>
__device__ __forceinline__ void load_prefill_queries(const awq_edge_attention& a, T* queries, int b,
                                                     int head, int first_token, int past,
                                                     int warp, int lane) {
  constexpr int kRows = PrefillShape<kHeadSize>::kRows;
#pragma unroll 4
  for (int row = warp; row < kRows; row += kPrefillWarps) {
    const int token = first_token + row;
    HeadRow<kHeadSize> values{};
    if (token < a.tokens) {
      const int64_t row_in = static_cast<int64_t>(b) * a.tokens + token;
      values = load_row<T, kHeadSize>(
          static_cast<const T*>(a.q) + row_in * a.q_stride + head * kHeadSize, a.rotary_size,
          lane);
      const int position = past + token < a.context ? past + token : a.context - 1;
      normalize_and_rotate(values, static_cast<const T*>(a.q_norm), a, position, lane);
    }
    for_each_pair<kHeadSize>(lane, a.rotary_size, [&](int slot, int, ChannelPair channels) {
      queries[swizzled<kHeadSize>(row, channels.first)] = from_float<T>(values.first[slot]);
      queries[swizzled<kHeadSize>(row, channels.second)] = from_float<T>(values.second[slot]);
    });
  }
}

// What a warp keeps: its rows are 16 tile + g and + 8 of its `first_row`.
template <int kHeadSize>
struct PrefillState {
  using Shape = PrefillShape<kHeadSize>;
  float y[Shape::kRowTiles][Shape::kOutTiles][4];
  float maximum[Shape::kRowTiles][2];
  float sum[Shape::kRowTiles][2];  // of this lane's keys
};

// The row of a tile from which a lane reads 16 bytes for ldmatrix, relative to the first row of the
// matrices (a multiple of 8).
template <int kHeadSize>
struct LaneRow {
  uint32_t address;
  uint32_t bits;
  __device__ __forceinline__ LaneRow(const void* tile, int row, int odd)
      : address(shared_address(tile) + 2 * kHeadSize * row),
        bits(swizzle_lane_bits<kHeadSize>(row, odd)) {}
  // Both arguments are known at compile time; `chunk` is even.
  __device__ __forceinline__ uint32_t at(int first_row, int chunk) const {
    return address + swizzled_chunk_bytes<kHeadSize>(chunk, bits) + 2 * kHeadSize * first_row;
  }
};

// scores = Q K^T, not scaled yet.
template <typename T, int kHeadSize>
__device__ __forceinline__ void query_key_products(
    float (&scores)[PrefillShape<kHeadSize>::kRowTiles][PrefillShape<kHeadSize>::kKeyTiles][4],
    const LaneRow<kHeadSize>& queries, const LaneRow<kHeadSize>& keys) {
  using Shape = PrefillShape<kHeadSize>;
#pragma unroll
  for (int r = 0; r < Shape::kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < Shape::kKeyTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[r][n][i] = 0.0f;
#pragma unroll
  for (int k = 0; k < kHeadSize / 16; ++k) {
    uint32_t q[Shape::kRowTiles][4];
#pragma unroll
    for (int r = 0; r < Shape::kRowTiles; ++r)
      load_matrices(q[r], queries.at(16 * r, 2 * k));
#pragma unroll
    for (int n = 0; n < Shape::kKeyTiles; n += 2) {
      // Matrices: keys 8 n.. by channels 16 k.., the same keys by the next 8 channels, then both
      // for the next 8 keys.
      uint32_t b[4];
      load_matrices(b, keys.at(8 * n, 2 * k));
#pragma unroll
      for (int r = 0; r < Shape::kRowTiles; ++r) {
        mma_16816<T>(scores[r][n], q[r], b[0], b[1]);
        mma_16816<T>(scores[r][n + 1], q[r], b[2], b[3]);
      }
    }
  }
}

template <int kHeadSize>
__device__ __forceinline__ void cap_scores(
    float (&scores)[PrefillShape<kHeadSize>::kRowTiles][PrefillShape<kHeadSize>::kKeyTiles][4],
    ScoreScale scale) {
#pragma unroll
  for (int r = 0; r < PrefillShape<kHeadSize>::kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < PrefillShape<kHeadSize>::kKeyTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[r][n][i] = soft_capped(scores[r][n][i], scale);
}

// `position`, `key`: of the lane's first score.
template <int kHeadSize>
__device__ __forceinline__ void mask_scores(
    float (&scores)[PrefillShape<kHeadSize>::kRowTiles][PrefillShape<kHeadSize>::kKeyTiles][4],
    int position, int key, int window) {
#pragma unroll
  for (int r = 0; r < PrefillShape<kHeadSize>::kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < PrefillShape<kHeadSize>::kKeyTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (!is_visible(key + 8 * n + (i & 1), position + 16 * r + (i < 2 ? 0 : 8), window))
          scores[r][n][i] = -INFINITY;
}

// Scores become shares relative to the new maximum; y and sum follow it.
template <typename T, int kHeadSize>
__device__ __forceinline__ void take_prefill_shares(
    float (&scores)[PrefillShape<kHeadSize>::kRowTiles][PrefillShape<kHeadSize>::kKeyTiles][4],
    PrefillState<kHeadSize>& state, float factor) {
  using Shape = PrefillShape<kHeadSize>;
#pragma unroll
  for (int r = 0; r < Shape::kRowTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float maximum = state.maximum[r][half];
#pragma unroll
      for (int n = 0; n < Shape::kKeyTiles; ++n)
        maximum = fmaxf(maximum, fmaxf(scores[r][n][2 * half], scores[r][n][2 * half + 1]));
      maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, 1));
      maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, 2));
      const float reference = reference_of(maximum) * factor;
      const float correction = exp2_approximate(state.maximum[r][half] * factor - reference);
      state.maximum[r][half] = maximum;
      float sum = state.sum[r][half] * correction;
#pragma unroll
      for (int n = 0; n < Shape::kKeyTiles; ++n)
#pragma unroll
        for (int c = 2 * half; c < 2 * half + 2; ++c) {
          scores[r][n][c] = exp2_approximate(scores[r][n][c] * factor - reference);
          sum += scores[r][n][c];
        }
      state.sum[r][half] = sum;
#pragma unroll
      for (int n = 0; n < Shape::kOutTiles; ++n) {
        state.y[r][n][2 * half] *= correction;
        state.y[r][n][2 * half + 1] *= correction;
      }
    }
}

// y += P V.
template <typename T, int kHeadSize>
__device__ __forceinline__ void add_prefill_values(
    PrefillState<kHeadSize>& state,
    const float (&shares)[PrefillShape<kHeadSize>::kRowTiles][PrefillShape<kHeadSize>::kKeyTiles]
                         [4],
    const LaneRow<kHeadSize>& values) {
  using Shape = PrefillShape<kHeadSize>;
#pragma unroll
  for (int k = 0; k < Shape::kKeys / 16; ++k) {
    uint32_t p[Shape::kRowTiles][4];
#pragma unroll
    for (int r = 0; r < Shape::kRowTiles; ++r)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = &shares[r][2 * k + i / 2][2 * (i % 2)];
        p[r][i] = pack_pair<T>(pair[0], pair[1]);
      }
#pragma unroll
    for (int n = 0; n < Shape::kOutTiles; n += 2) {
      uint32_t b[4];
      load_matrices_transposed(b, values.at(16 * k, n));
#pragma unroll
      for (int r = 0; r < Shape::kRowTiles; ++r) {
        mma_16816<T>(state.y[r][n], p[r], b[0], b[1]);
        mma_16816<T>(state.y[r][n + 1], p[r], b[2], b[3]);
      }
    }
  }
}

// Through the warp's own rows of the queries' shared memory, which nobody reads any more, to
// stores of 16 bytes.
template <typename T, int kHeadSize>
__device__ __forceinline__ void store_prefill_outputs(const awq_edge_attention& a,
                                                      PrefillState<kHeadSize>& state, T* shared,
                                                      int b, int head, int first_token,
                                                      int first_row, int lane) {
  using Shape = PrefillShape<kHeadSize>;
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int r = 0; r < Shape::kRowTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = state.sum[r][half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
      const int row = first_row + 16 * r + g + 8 * half;
#pragma unroll
      for (int n = 0; n < Shape::kOutTiles; ++n)
        *reinterpret_cast<uint32_t*>(shared + swizzled<kHeadSize>(row, 8 * n + 2 * t)) =
            pack_pair<T>(state.y[r][n][2 * half] * inverse,
                         state.y[r][n][2 * half + 1] * inverse);
    }
  __syncwarp();
  constexpr int kChunks = kHeadSize / 8;
#pragma unroll 4
  for (int i = lane; i < Shape::kWarpRows * kChunks; i += 32) {
    const int row = first_row + i / kChunks, channel = 8 * (i % kChunks);
    if (first_token + row >= a.tokens) continue;
    const int64_t token = static_cast<int64_t>(b) * a.tokens + first_token + row;
    *reinterpret_cast<uint4*>(static_cast<T*>(a.y) + (token * a.num_heads + head) * kHeadSize +
                              channel) =
        *reinterpret_cast<const uint4*>(shared + swizzled<kHeadSize>(row, channel));
  }
}

template <typename T, int kHeadSize>
__global__ void __launch_bounds__(kPrefillThreads)
    prefill_attention(const __grid_constant__ awq_edge_attention a) {
  using Shape = PrefillShape<kHeadSize>;
  extern __shared__ __align__(16) unsigned char shared[];
  T* queries = reinterpret_cast<T*>(shared);
  T* keys = queries + Shape::kRows * kHeadSize;
  T* values = keys + Shape::kKeys * kHeadSize;
  int8_t* codes = a.kv_dtype == AWQ_EDGE_INT8
                      ? reinterpret_cast<int8_t*>(values + Shape::kKeys * kHeadSize)
                      : nullptr;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int head = blockIdx.y, b = blockIdx.z;
  const int first_token = prefill_first_token(blockIdx.x, gridDim.x, Shape::kRows);
  const int last_token =
      (first_token + Shape::kRows < a.tokens ? first_token + Shape::kRows : a.tokens) - 1;

  let_next_kernel_start();
  wait_for_previous_kernel();
  const int past = clamped_past(a.past_length[b], a.context);
  const KeyRange visible = visible_keys(past, first_token, last_token, a.window, a.context);
  const int64_t cache_head =
      static_cast<int64_t>(b) * a.num_kv_heads + head / (a.num_heads / a.num_kv_heads);
  const int64_t cache_bytes =
      cache_head * a.context * kHeadSize * (codes != nullptr ? 1 : static_cast<int>(sizeof(T)));
  const CacheTile<T, kHeadSize> key_tile{
      keys, codes, static_cast<const char*>(a.key_cache) + cache_bytes,
      a.key_scales + cache_head * a.context};
  const CacheTile<T, kHeadSize> value_tile{
      values, codes != nullptr ? codes + Shape::kKeys * kHeadSize : nullptr,
      static_cast<const char*>(a.value_cache) + cache_bytes,
      a.value_scales + cache_head * a.context};

  key_tile.copy(visible.begin, visible);
  load_prefill_queries<T, kHeadSize>(a, queries, b, head, first_token, past, warp, lane);

  const int first_row = warp * Shape::kWarpRows;
  const int first_position = past + first_token + first_row;
  const int last_position = first_position + Shape::kWarpRows - 1;
  const ScoreScale scale = score_scale(a);
  const LaneRow<kHeadSize> query_row(queries, first_row + lane % 16, lane / 16);
  const LaneRow<kHeadSize> key_row(keys, lane / 16 * 8 + lane % 8, lane / 8 % 2);
  const LaneRow<kHeadSize> value_row(values, lane % 16, lane / 16);
  PrefillState<kHeadSize> state;
#pragma unroll
  for (int r = 0; r < Shape::kRowTiles; ++r) {
    state.maximum[r][0] = state.maximum[r][1] = -INFINITY;
    state.sum[r][0] = state.sum[r][1] = 0.0f;
#pragma unroll
    for (int n = 0; n < Shape::kOutTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) state.y[r][n][i] = 0.0f;
  }

#pragma unroll 1
  for (int key = visible.begin; key < visible.end; key += Shape::kKeys) {
    wait_copies<0>();
    key_tile.expand(key, visible);
    __syncthreads();  // the keys are there, and every warp is done with the values before
    value_tile.copy(key, visible);
    const KeyRange range{key, key + Shape::kKeys};
    const bool needed = first_token + first_row < a.tokens &&
                        !none_visible(range, first_position, last_position, a.window);
    float scores[Shape::kRowTiles][Shape::kKeyTiles][4];
    if (needed) {
      query_key_products<T, kHeadSize>(scores, query_row, key_row);
      if (scale.inner != 0.0f) cap_scores<kHeadSize>(scores, scale);
      if (!all_visible(range, first_position, last_position, a.window))
        mask_scores<kHeadSize>(scores, first_position + g, key + 2 * t, a.window);
      take_prefill_shares<T, kHeadSize>(scores, state, scale.factor);
    }
    wait_copies<0>();
    value_tile.expand(key, visible);
    __syncthreads();  // the values are there, and every warp is done with the keys
    if (key + Shape::kKeys < visible.end) key_tile.copy(key + Shape::kKeys, visible);
    if (needed) add_prefill_values<T, kHeadSize>(state, scores, value_row);
  }
  store_prefill_outputs<T, kHeadSize>(a, state, queries, b, head, first_token, first_row, lane);
}

}  // namespace awq_edge
