// One head of one token, spread over a warp: normalized, rotated, and stored as a query, or into
// the cache in its dtype.
#pragma once

#include <type_traits>

#include "attention_fragments.h"
#include "awq_edge_kernels.h"
#include "element.cuh"
#include "sequence_rows.h"

namespace awq_edge {

// Each lane holds pairs lane, lane + 32, ... of the row; see channel_pair.
template <int kHeadSize>
struct HeadRow {
  static constexpr int kPairs = kHeadSize / 2;
  static constexpr int kSlots = (kPairs + 31) / 32;
  float first[kSlots];
  float second[kSlots];
};

template <int kHeadSize, typename Function>
__device__ __forceinline__ void for_each_pair(int lane, int rotary_size, Function function) {
#pragma unroll
  for (int slot = 0; slot < HeadRow<kHeadSize>::kSlots; ++slot) {
    const int pair = lane + 32 * slot;
    if (HeadRow<kHeadSize>::kPairs % 32 == 0 || pair < HeadRow<kHeadSize>::kPairs)
      function(slot, pair, channel_pair(pair, rotary_size));
  }
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  return value;
}

template <typename T, int kHeadSize>
__device__ __forceinline__ HeadRow<kHeadSize> load_row(const T* source, int rotary_size, int lane) {
  HeadRow<kHeadSize> row{};
  for_each_pair<kHeadSize>(lane, rotary_size, [&](int slot, int, ChannelPair channels) {
    row.first[slot] = to_float(source[channels.first]);
    row.second[slot] = to_float(source[channels.second]);
  });
  return row;
}

// A token that is rotated: its sequence, its row of the call, and its position in the cache.
struct RotatedToken {
  int b;
  int64_t row;
  int position;
};

// The first row of the tables of sequence b.
__device__ __forceinline__ int64_t first_table_row(const awq_edge_attention& a, int b) {
  if (a.rotary_table == nullptr) return 0;
  const int64_t table = a.rotary_table[b];
  return table < 0 || table >= a.rotary_tables ? 0 : table * a.context;
}

// The row of the tables that turns a pair of channels. Whatever positions say, it is one of them.
__device__ __forceinline__ int64_t table_row(const awq_edge_attention& a, RotatedToken token,
                                             int pair) {
  int64_t position = token.position;
  if (a.positions != nullptr) {
    const int axes = a.position_axes > 1 ? a.position_axes : 1;
    const int axis = a.pair_axes == nullptr ? 0 : a.pair_axes[pair];
    position = a.positions[token.row * axes + (axis < 0 || axis >= axes ? 0 : axis)];
    position = position < 0 ? 0 : position < a.context ? position : a.context - 1;
  }
  return first_table_row(a, token.b) + position;
}

// RMSNorm of the head by `norm` (null: none), then the rotation, all in float32.
template <typename T, int kHeadSize>
__device__ __forceinline__ void normalize_and_rotate(HeadRow<kHeadSize>& row, const T* norm,
                                                     const awq_edge_attention& a,
                                                     RotatedToken token, int lane) {
  if (norm != nullptr) {
    float sum = 0.0f;
    for_each_pair<kHeadSize>(lane, a.rotary_size, [&](int slot, int, ChannelPair) {
      sum += row.first[slot] * row.first[slot] + row.second[slot] * row.second[slot];
    });
    const float factor = rsqrtf(warp_sum(sum) / kHeadSize + a.norm_eps);
    for_each_pair<kHeadSize>(lane, a.rotary_size, [&](int slot, int, ChannelPair channels) {
      row.first[slot] *= factor * (to_float(norm[channels.first]) + a.norm_offset);
      row.second[slot] *= factor * (to_float(norm[channels.second]) + a.norm_offset);
    });
  }
  const int half = a.rotary_size / 2;
  for_each_pair<kHeadSize>(lane, a.rotary_size, [&](int slot, int pair, ChannelPair) {
    if (pair >= half) return;
    const int64_t angle = table_row(a, token, pair) * half + pair;
    const float cosine = a.cosine[angle], sine = a.sine[angle];
    const float first = row.first[slot], second = row.second[slot];
    row.first[slot] = first * cosine - second * sine;
    row.second[slot] = second * cosine + first * sine;
  });
}

template <typename T, int kHeadSize>
__device__ __forceinline__ void store_row(const HeadRow<kHeadSize>& row, T* destination,
                                          int rotary_size, int lane) {
  for_each_pair<kHeadSize>(lane, rotary_size, [&](int slot, int, ChannelPair channels) {
    destination[channels.first] = from_float<T>(row.first[slot]);
    destination[channels.second] = from_float<T>(row.second[slot]);
  });
}

template <int kHeadSize>
__device__ __forceinline__ float store_codes(const HeadRow<kHeadSize>& row, int8_t* destination,
                                             float* scale, int rotary_size, int lane) {
  float largest = 0.0f;
  for_each_pair<kHeadSize>(lane, rotary_size, [&](int slot, int, ChannelPair) {
    largest = fmaxf(largest, fmaxf(fabsf(row.first[slot]), fabsf(row.second[slot])));
  });
  largest = warp_max(largest);
  const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
  for_each_pair<kHeadSize>(lane, rotary_size, [&](int slot, int, ChannelPair channels) {
    destination[channels.first] = static_cast<int8_t>(int8_code(row.first[slot], inverse));
    destination[channels.second] = static_cast<int8_t>(int8_code(row.second[slot], inverse));
  });
  if (lane == 0) *scale = largest / 127.0f;
  return largest / 127.0f;
}

// The key (or the value) of token `token`, kv head `head`, of sequence `b` into the cache; by a
// whole warp. The caller has seen to it that the position lies in the cache. Returns the scale, 1
// where the cache is not int8.
template <typename T, int kHeadSize>
__device__ __forceinline__ float append_row(const awq_edge_attention& a, bool is_key, int b,
                                           int token, int head, int position, int lane) {
  const int64_t row_in = sequence_rows(a.row_begin, b, a.tokens).first + token;
  const int64_t row_out = (static_cast<int64_t>(b) * a.num_kv_heads + head) * a.context + position;
  const T* source = static_cast<const T*>(is_key ? a.k : a.v) +
                    row_in * (is_key ? a.k_stride : a.v_stride) + head * kHeadSize;
  void* cache = is_key ? a.key_cache : a.value_cache;
  HeadRow<kHeadSize> row = load_row<T, kHeadSize>(source, a.rotary_size, lane);
  if (is_key)
    normalize_and_rotate(row, static_cast<const T*>(a.k_norm), a, {b, row_in, position}, lane);
  if (a.kv_dtype == AWQ_EDGE_INT8)
    return store_codes(row, static_cast<int8_t*>(cache) + row_out * kHeadSize,
                       (is_key ? a.key_scales : a.value_scales) + row_out, a.rotary_size, lane);
  store_row(row, static_cast<T*>(cache) + row_out * kHeadSize, a.rotary_size, lane);
  return 1.0f;
}

}  // namespace awq_edge
