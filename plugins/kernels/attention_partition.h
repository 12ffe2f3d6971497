// Who computes what in attention: rows, visible keys, splits of the keys, workspace. Plain
// arithmetic, the same on the host and on the device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "host_device.h"

namespace awq_edge {

// Positions [begin, end) of the cache.
struct KeyRange {
  int begin;
  int end;
};

// past_length is in device memory and nobody has checked it: no value may lead out of the cache.
AWQ_EDGE_HD int clamped_past(int64_t past_length, int context) {
  return past_length < 0 ? 0 : past_length > context ? context : static_cast<int>(past_length);
}

// Positions are ints: the sum of a context and a number of tokens within these does not overflow.
constexpr int kMaxPositions = 1 << 30;

// The keys that the tokens first_token..last_token of this call see together.
AWQ_EDGE_HD KeyRange visible_keys(int past, int first_token, int last_token, int window,
                                  int context) {
  const int last = past + last_token + 1;
  const int end = last > context ? context : last;
  const int first = past + first_token - window + 1;
  const int begin = window == 0 || first < 0 ? 0 : first > end ? end : first;
  return {begin, end};
}

AWQ_EDGE_HD bool is_visible(int key, int position, int window) {
  return key <= position && (window == 0 || key > position - window);
}

// True where each of the keys is visible to each of the positions: then no mask is needed.
AWQ_EDGE_HD bool all_visible(KeyRange keys, int first_position, int last_position, int window) {
  return keys.end - 1 <= first_position && (window == 0 || keys.begin > last_position - window);
}

// True where none of the keys is visible to any of the positions: then the tile is skipped.
AWQ_EDGE_HD bool none_visible(KeyRange keys, int first_position, int last_position, int window) {
  return keys.begin > last_position || (window != 0 && keys.end - 1 <= first_position - window);
}

// ------------------------------------------------------------------ decode
// The query heads of one kv head and the tokens of the call share the keys: together they are the
// rows of a problem, row = token * heads_per_kv + head within the group. A row tile is what one
// block computes.

constexpr int kDecodeWarps = 8;
constexpr int kDecodeTileKeys = 16;  // of one warp at a time
constexpr int kDecodeStepKeys = kDecodeWarps * kDecodeTileKeys;
constexpr int kMaxSplits = 128;
// Above this many rows of a kv head the prefill kernel is taken.
constexpr int kMaxDecodeRows = 64;

AWQ_EDGE_HD int ceil_div(int a, int b) { return (a + b - 1) / b; }

struct DecodePlan {
  int tile_rows;  // rows of a row tile: 8 or 16
  int row_tiles;  // of a kv head
  int splits;     // blocks that share the keys of one row tile
};

// Two tiles of 8 rows in one block read the keys once for both; the accumulators of 16 rows fit
// the registers up to 128 channels.
AWQ_EDGE_HD int decode_tile_rows(int rows, int head_size) {
  return rows > 8 && (head_size == 64 || head_size == 128) ? 16 : 8;
}

// `blocks`: how many blocks the device holds at a time. The number of splits depends on nothing
// that changes from step to step, so a captured graph stays right as past_length grows; how many
// of the splits have keys is found out on the device.
AWQ_EDGE_HD DecodePlan decode_plan(int batch, int num_kv_heads, int rows, int head_size,
                                   int context, int blocks, int max_counters) {
  DecodePlan plan;
  plan.tile_rows = decode_tile_rows(rows, head_size);
  plan.row_tiles = ceil_div(rows, plan.tile_rows);
  const int64_t tiles = static_cast<int64_t>(batch) * num_kv_heads * plan.row_tiles;
  int64_t splits = tiles > max_counters ? 1 : blocks / tiles;
  const int longest = ceil_div(context, kDecodeStepKeys);
  if (splits > longest) splits = longest;
  if (splits > kMaxSplits) splits = kMaxSplits;
  plan.splits = splits < 1 ? 1 : static_cast<int>(splits);
  return plan;
}

struct KeySplit {
  KeyRange keys;  // empty where the block has nothing to do
  int active;     // splits that have keys, 1 at least
};

// Equal parts of whole steps; the last is shorter.
AWQ_EDGE_HD KeySplit key_split(KeyRange keys, int splits, int index) {
  const int count = keys.end - keys.begin;
  const int part = ceil_div(ceil_div(count, splits), kDecodeStepKeys) * kDecodeStepKeys;
  const int active = count == 0 ? 1 : ceil_div(count, part);
  if (index >= active) return {{keys.end, keys.end}, active};
  const int begin = keys.begin + index * part;
  return {{begin, keys.end - begin < part ? keys.end : begin + part}, active};
}

// Float32 values of the workspace that a split leaves for the merge: `tile_rows` outputs of
// head_size channels, then for each row its maximum and its sum.
AWQ_EDGE_HD size_t partial_floats(int tile_rows, int head_size) {
  return static_cast<size_t>(tile_rows) * (head_size + 2);
}

AWQ_EDGE_HD size_t decode_workspace_floats(int batch, int num_kv_heads, DecodePlan plan,
                                           int head_size) {
  if (plan.splits == 1) return 0;
  return static_cast<size_t>(batch) * num_kv_heads * plan.row_tiles * plan.splits *
         partial_floats(plan.tile_rows, head_size);
}

// The merge of splits takes one item of 4 channels a thread; where there are fewer items than
// threads, `groups` threads share the splits of an item.
AWQ_EDGE_HD int merge_groups(int items, int threads, int splits) {
  int groups = 1;
  while (2 * groups * items <= threads && 2 * groups <= splits) groups *= 2;
  return groups;
}

// ------------------------------------------------------------------ prefill

struct PrefillBlock {
  int head;
  int tile;  // of tokens
};

// Heads in sections whose keys and values the L2 cache holds together. Within a section the last
// tiles of tokens first, of all heads: they see the most keys, and what starts last should be
// short.
AWQ_EDGE_HD PrefillBlock prefill_block(int index, int tiles, int heads, int section_heads) {
  const int section = index / (section_heads * tiles);
  const int first_head = section * section_heads;
  const int heads_here = heads - first_head < section_heads ? heads - first_head : section_heads;
  const int rest = index - first_head * tiles;
  return {first_head + rest % heads_here, tiles - 1 - rest / heads_here};
}

// Heads of a section: as equal sections as it takes for three quarters of the cache to hold one, of
// whole groups that share a kv head. How many keys there are besides the call's own is not known on
// the host.
AWQ_EDGE_HD int prefill_section_heads(int tokens, int head_size, int num_heads, int num_kv_heads,
                                      int64_t cache_bytes) {
  const int64_t bytes_of_kv_head = int64_t{2} * 2 * tokens * head_size;
  const int64_t fitting = cache_bytes * 3 / 4 / bytes_of_kv_head;
  const int limit = fitting < 1 ? 1 : fitting > num_kv_heads ? num_kv_heads
                                                              : static_cast<int>(fitting);
  const int sections = ceil_div(num_kv_heads, limit);
  return ceil_div(num_kv_heads, sections) * (num_heads / num_kv_heads);
}

}  // namespace awq_edge
