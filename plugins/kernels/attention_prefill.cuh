// Prefill attention in the flash style: a block has a tile of queries of one head, goes through
// the keys it can see tile by tile, and never writes a score to memory. Described in
// docs/kernels-attention.md.
#pragma once

#include "attention_math.cuh"
#include "attention_prefill_tiles.cuh"

namespace awq_edge {

// The value, as the compiler cannot know it: what follows from it is computed again where it is
// used, a few instructions a tile, and does not take registers of the loop meanwhile.
__device__ __forceinline__ int forgotten(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

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

// The state of a warp: its rows are 16 tile + g and + 8 of its `first_row`.
template <typename Shape>
struct PrefillState {
  float y[Shape::kRowTiles][Shape::kOutTiles][4];
  float maximum[Shape::kRowTiles][2];
  float sum[Shape::kRowTiles][2];  // of this lane's keys
};

template <typename Shape>
__device__ __forceinline__ void clear(PrefillState<Shape>& state) {
#pragma unroll
  for (int r = 0; r < Shape::kRowTiles; ++r) {
    state.maximum[r][0] = state.maximum[r][1] = -INFINITY;
    state.sum[r][0] = state.sum[r][1] = 0.0f;
#pragma unroll
    for (int n = 0; n < Shape::kOutTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) state.y[r][n][i] = 0.0f;
  }
}

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
template <typename T, typename Shape>
__device__ __forceinline__ void query_key_products(
    float (&scores)[Shape::kRowTiles][Shape::kKeyTiles][4],
    const LaneRow<Shape::kHeadSize>& queries, const LaneRow<Shape::kHeadSize>& keys) {
#pragma unroll
  for (int r = 0; r < Shape::kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < Shape::kKeyTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[r][n][i] = 0.0f;
  // Unrolled as far as the next fragments find registers.
  constexpr int kUnrolled = Shape::kRowTiles == 1 ? Shape::kHeadSize / 16 : 2;
#pragma unroll kUnrolled
  for (int k = 0; k < Shape::kHeadSize / 16; ++k) {
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

// Each score, or share, of a row tile times `unit` and the scale of its key. `scales`: of the
// lane's first key.
template <typename Shape>
__device__ __forceinline__ void multiply_by_key(
    float (&scores)[Shape::kKeyTiles][4], const float* scales, float unit) {
#pragma unroll
  for (int n = 0; n < Shape::kKeyTiles; ++n) {
    const float2 pair = *reinterpret_cast<const float2*>(scales + 8 * n);
    const float scale[2] = {pair.x * unit, pair.y * unit};
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] *= scale[i & 1];
  }
}

// The largest scale of the values that the block sees, or 1: shares times scale / largest stay in
// T's range however small the scales are. `shared`: a float a warp.
__device__ __forceinline__ float largest_value_scale(const float* scales, KeyRange keys,
                                                     float* shared) {
  float largest = 0.0f;
#pragma unroll 8
  for (int key = keys.begin + threadIdx.x; key < keys.end; key += kPrefillThreads)
    largest = fmaxf(largest, __ldcg(scales + key));
  largest = warp_max(largest);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = largest;
  __syncthreads();
  largest = shared[0];
#pragma unroll
  for (int warp = 1; warp < kPrefillWarps; ++warp) largest = fmaxf(largest, shared[warp]);
  return largest > 0.0f ? largest : 1.0f;
}

template <typename Shape>
__device__ __forceinline__ void cap_scores(
    float (&scores)[Shape::kRowTiles][Shape::kKeyTiles][4],
    ScoreScale scale) {
#pragma unroll
  for (int r = 0; r < Shape::kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < Shape::kKeyTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[r][n][i] = soft_capped(scores[r][n][i], scale);
}

// `position`, `key`: of the lane's first score.
template <typename Shape>
__device__ __forceinline__ void mask_scores(
    float (&scores)[Shape::kRowTiles][Shape::kKeyTiles][4],
    int position, int key, int window) {
#pragma unroll
  for (int r = 0; r < Shape::kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < Shape::kKeyTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (!is_visible(key + 8 * n + (i & 1), position + 16 * r + (i < 2 ? 0 : 8), window))
          scores[r][n][i] = -INFINITY;
}

// Scores become shares relative to the new maximum; y and sum follow it. `shares`: operand A of
// P V, P times the scales of V, of which `value_scales` is the lane's first (null: 1), times
// per_unit.
template <typename T, typename Shape>
__device__ __forceinline__ void take_prefill_shares(
    uint32_t (&shares)[Shape::kRowTiles][Shape::kKeyTiles][2],
    float (&scores)[Shape::kRowTiles][Shape::kKeyTiles][4],
    PrefillState<Shape>& state, float factor, const float* value_scales, float per_unit) {
#pragma unroll
  for (int r = 0; r < Shape::kRowTiles; ++r) {
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
    if (value_scales != nullptr) multiply_by_key<Shape>(scores[r], value_scales, per_unit);
#pragma unroll
    for (int n = 0; n < Shape::kKeyTiles; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        shares[r][n][half] = pack_pair<T>(scores[r][n][2 * half], scores[r][n][2 * half + 1]);
  }
}

// y += P V.
template <typename T, typename Shape>
__device__ __forceinline__ void add_prefill_values(
    PrefillState<Shape>& state,
    const uint32_t (&shares)[Shape::kRowTiles]
                            [Shape::kKeyTiles][2],
    const LaneRow<Shape::kHeadSize>& values) {
#pragma unroll
  for (int k = 0; k < Shape::kKeys / 16; ++k) {
    uint32_t p[Shape::kRowTiles][4];
#pragma unroll
    for (int r = 0; r < Shape::kRowTiles; ++r)
#pragma unroll
      for (int i = 0; i < 4; ++i) p[r][i] = shares[r][2 * k + i / 2][i % 2];
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
template <typename T, typename Shape>
__device__ __forceinline__ void store_prefill_outputs(const awq_edge_attention& a,
                                                      PrefillState<Shape>& state, float unit,
                                                      T* shared, int b, int head, int first_token,
                                                      int first_row, int lane) {
  const int g = lane / 4, t = lane % 4;
  const float factor = score_scale(a).factor;
#pragma unroll
  for (int r = 0; r < Shape::kRowTiles; ++r)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = state.sum[r][half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      sum += sink_share<T>(a, head, state.maximum[r][half] * factor);
      const float inverse = sum > 0.0f ? unit / sum : 0.0f;
      const int row = first_row + 16 * r + g + 8 * half;
#pragma unroll
      for (int n = 0; n < Shape::kOutTiles; ++n)
        *reinterpret_cast<uint32_t*>(shared + swizzled<Shape::kHeadSize>(row, 8 * n + 2 * t)) =
            pack_pair<T>(state.y[r][n][2 * half] * inverse,
                         state.y[r][n][2 * half + 1] * inverse);
    }
  __syncwarp();
  constexpr int kChunks = Shape::kHeadSize / 8;
  const SequenceRows rows = sequence_rows(a.row_begin, b, a.tokens);
#pragma unroll 4
  for (int i = lane; i < Shape::kWarpRows * kChunks; i += 32) {
    const int row = first_row + i / kChunks, channel = 8 * (i % kChunks);
    if (first_token + row >= rows.count) continue;
    const int64_t token = rows.first + first_token + row;
    T* y = static_cast<T*>(a.y) + (token * a.num_heads + head) * Shape::kHeadSize;
    *reinterpret_cast<uint4*>(y + channel) =
        *reinterpret_cast<const uint4*>(shared + swizzled<Shape::kHeadSize>(row, channel));
  }
}

template <typename T, typename Shape>
__global__ void __launch_bounds__(kPrefillThreads, Shape::kBlocksPerSm)
    prefill_attention(const __grid_constant__ awq_edge_attention a, int section_heads) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ float norm_factors[Shape::kRows];
  __shared__ float scratch[kPrefillWarps];
  T* queries = reinterpret_cast<T*>(shared);
  T* keys = queries + Shape::kRows * Shape::kHeadSize;
  T* values = keys + Shape::kKeys * Shape::kHeadSize;
  float* scales = reinterpret_cast<float*>(values + Shape::kKeys * Shape::kHeadSize);
  int8_t* codes = reinterpret_cast<int8_t*>(scales + 2 * Shape::kKeys);
  const bool int8 = a.kv_dtype == AWQ_EDGE_INT8;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int tiles = ceil_div(a.tokens, Shape::kRows), b = blockIdx.y;
  const PrefillBlock block = prefill_block(blockIdx.x, tiles, a.num_heads, section_heads);
  const int head = block.head, first_token = block.tile * Shape::kRows;

  // The kernel before this one is append_to_cache, which lets this one start only when all before
  // it is done: q and past_length are there, the cache is not.
  let_next_kernel_start();
  const int tokens = sequence_rows(a.row_begin, b, a.tokens).count;
  if (first_token >= tokens) return;
  const int last_token =
      (first_token + Shape::kRows < tokens ? first_token + Shape::kRows : tokens) - 1;
  const QueryTile<T, Shape> query_tile{queries};
  query_tile.copy(a, b, head, first_token);
  const int past = clamped_past(a.past_length[b], a.context);
  wait_copies<0>();
  __syncthreads();
  query_tile.prepare(a, b, first_token, past + first_token, norm_factors);
  wait_for_previous_kernel();

  const KeyRange visible = visible_keys(past, first_token, last_token, a.window, a.context);
  const int cache_head = b * a.num_kv_heads + head / (a.num_heads / a.num_kv_heads);
  const CacheTile<T, Shape> key_tile{keys, int8 ? codes : nullptr};
  const CacheTile<T, Shape> value_tile{values,
                                       int8 ? codes + Shape::kKeys * Shape::kHeadSize : nullptr};
  const auto first_position_of_head = [&] {
    return static_cast<int64_t>(forgotten(cache_head)) * a.context;
  };
  const auto copy_keys = [&](int key) {
    const int64_t first = first_position_of_head();
    if (int8)
      copy_scales<Shape>(scales, a.key_scales + first, a.value_scales + first, key, visible);
    key_tile.copy(a.key_cache, first + key, visible.end - key);
    commit_copies();
  };
  copy_keys(visible.begin);
  const float value_unit =
      int8 ? largest_value_scale(a.value_scales + first_position_of_head(), visible, scratch)
           : 1.0f;
  const float per_unit = 1.0f / value_unit;

  const int first_row = warp * Shape::kWarpRows;
  // A warp without tokens is at positions that see nothing.
  const int first_position =
      first_token + first_row <= last_token ? past + first_token + first_row : -Shape::kWarpRows;
  const int last_position = first_position + Shape::kWarpRows - 1;
  const ScoreScale scale = score_scale(a);
  PrefillState<Shape> state;
  clear(state);

#pragma unroll 1
  for (int key = visible.begin; key < visible.end; key += Shape::kKeys) {
    wait_copies<0>();
    key_tile.expand();
    __syncthreads();  // the keys are there, and every warp is done with the values before
    value_tile.copy(a.value_cache, first_position_of_head() + key, visible.end - key);
    commit_copies();
    const KeyRange range{key, key + Shape::kKeys};
    const bool needed = !none_visible(range, first_position, last_position, a.window);
    uint32_t shares[Shape::kRowTiles][Shape::kKeyTiles][2];
    if (needed) {
      float scores[Shape::kRowTiles][Shape::kKeyTiles][4];
      const int lane_now = forgotten(lane);
      query_key_products<T, Shape>(
          scores, LaneRow<Shape::kHeadSize>(queries, first_row + lane_now % 16, lane_now / 16),
          LaneRow<Shape::kHeadSize>(keys, lane_now / 16 * 8 + lane_now % 8, lane_now / 8 % 2));
      if (int8) {
#pragma unroll
        for (int r = 0; r < Shape::kRowTiles; ++r)
          multiply_by_key<Shape>(scores[r], scales + 2 * t, 1.0f);
      }
      if (scale.inner != 0.0f) cap_scores<Shape>(scores, scale);
      if (!all_visible(range, first_position, last_position, a.window))
        mask_scores<Shape>(scores, first_position + g, key + 2 * t, a.window);
      take_prefill_shares<T, Shape>(shares, scores, state, scale.factor,
                                    int8 ? scales + Shape::kKeys + 2 * t : nullptr, per_unit);
    }
    wait_copies<0>();
    value_tile.expand();
    __syncthreads();  // the values are there, and every warp is done with the keys
    if (key + Shape::kKeys < visible.end) copy_keys(key + Shape::kKeys);
    if (needed) {
      const int lane_now = forgotten(lane);
      add_prefill_values<T, Shape>(
          state, shares, LaneRow<Shape::kHeadSize>(values, lane_now % 16, lane_now / 16));
    }
  }
  store_prefill_outputs<T, Shape>(a, state, value_unit, queries, b, head, first_token,
                                  first_row, lane);
}

}  // namespace awq_edge
