// Rotary embedding of the keys and append of keys and values to the cache, before a prefill. (The
// decode kernel appends by itself.)
#pragma once

#include "async_copy.cuh"
#include "attention_partition.h"
#include "attention_rows.cuh"
#include "launch.h"

namespace awq_edge {

constexpr int kAppendWarps = 8;

// A warp has a row: key or value of one token and kv head.
template <typename T, int kHeadSize>
__global__ void __launch_bounds__(32 * kAppendWarps)
    append_to_cache(const __grid_constant__ awq_edge_attention a) {
  // In this order, so that the prefill kernel behind this one starts when q and past_length are
  // there already, and may work on them before this one ends.
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int lane = threadIdx.x % 32, b = blockIdx.z;
  const int row = blockIdx.x * kAppendWarps + threadIdx.x / 32;
  const int token = row / a.num_kv_heads, head = row % a.num_kv_heads;
  if (token >= sequence_rows(a.row_begin, b, a.tokens).count) return;
  const int position = clamped_past(a.past_length[b], a.context) + token;
  if (position >= a.context) return;
  append_row<T, kHeadSize>(a, blockIdx.y == 0, b, token, head, position, lane);
}

}  // namespace awq_edge
