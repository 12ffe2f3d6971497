// The division of a quantized linear's work: pure arithmetic, the same for the workspace query, the
// launch and the tests.
#pragma once

#include "awq_edge_kernels.h"
#include "w4a16_layout.h"

namespace awq_edge {

constexpr int kMaxDecodeTokens = AWQ_EDGE_DECODE_ROWS;
constexpr int kMaxTokens = AWQ_EDGE_MAX_ROWS;
constexpr int kCounters = AWQ_EDGE_COUNTER_BYTES / 4;

// A tactic may carry its partition: AWQ_EDGE_TACTIC_* | tiles << 8 | warps << 12 | splits << 20 |
// row_warps << 28. What is 0 is chosen.
struct TacticFields {
  int tactic, tiles, warps, splits, row_warps;
};
inline TacticFields tactic_fields(int tactic) {
  return {tactic & 0xff, tactic >> 8 & 0xf, tactic >> 12 & 0xff, tactic >> 20 & 0xff,
          tactic >> 28 & 0x7};
}

// tiles: of 16 rows, of a warp. warps: of a thread block, 1 << row_shift of them along the rows.
// splits: thread blocks that share the channels.
struct DecodePlan {
  int token_tiles, tiles, warps, row_shift, splits, tile_groups;
  size_t partial_floats;
};

// The facts of a device that a division of work depends on.
struct Machine {
  int sm_count;
  int shared_bytes;  // that a thread block may have
};

// Stages of a warp's ring: about 4 KB under way a warp and tile, whatever the bits.
AWQ_EDGE_HD constexpr int decode_stages(int bits) { return bits == 8 ? 2 : 4; }

// Bytes of one stage of one tile: codes, scales and zero points, these for the smallest group.
constexpr int kScaleBytes = 4 * 32;
AWQ_EDGE_HD constexpr int decode_tile_bytes(int bits) {
  return block_words(bits) * 4 + kScaleBytes + 4 * zero_words(bits) * 4;
}

inline size_t decode_shared_bytes(int bits, const DecodePlan& plan) {
  const size_t ring = size_t(plan.warps) * decode_stages(bits) * plan.tiles * decode_tile_bytes(bits);
  const size_t sums = size_t(plan.warps + (1 << plan.row_shift)) * plan.tiles * plan.token_tiles * 512;
  return ring > sums ? ring : sums;
}

inline DecodePlan decode_plan(int m, int tiles, int blocks, int bits, const Machine& machine,
                              const TacticFields& requested) {
  DecodePlan plan{};
  plan.token_tiles = m > 8 ? 2 : 1;
  // Few tiles: all warps of a multiprocessor share the channels of a pair. Many: thread blocks of
  // four or eight warps, of which several fit a multiprocessor, so that the end of one is hidden by
  // the others; warps along the rows read the same x at the same time. The bounds are from a sweep
  // over the shapes of docs/kernels.md.
  const int sm_count = machine.sm_count, pairs = ceil_div(tiles, 2);
  const bool shares_x = pairs > 7 * sm_count / 2 && (plan.token_tiles == 2 || pairs <= 16 * sm_count);
  const bool single = shares_x && plan.token_tiles == 1 && pairs <= 6 * sm_count;
  plan.tiles = single ? 1 : 2;
  plan.row_shift = single ? 2 : shares_x ? 1 : 0;
  plan.warps = pairs <= sm_count ? 16 : pairs <= 9 * sm_count / 4 || single ? 8 : 4;
  if (requested.tiles) plan.tiles = requested.tiles;
  if (requested.tiles || requested.warps || requested.row_warps) {
    plan.row_shift = requested.row_warps >= 4 ? 2 : requested.row_warps / 2;
  }
  if (requested.warps) plan.warps = requested.warps;
  while (!requested.warps && plan.warps > 1 << plan.row_shift &&
         (plan.warps > blocks << plan.row_shift ||
          decode_shared_bytes(bits, plan) > size_t(machine.shared_bytes))) {
    plan.warps /= 2;
  }
  plan.tile_groups = ceil_div(tiles, plan.tiles << plan.row_shift);
  int splits = requested.splits;
  if (splits == 0) {
    // A split costs a round through the L2 cache: only where half of the device would be idle, and
    // for 4096 channels each.
    splits = 1;
    if (2 * plan.tile_groups <= sm_count && blocks >= 64) {
      const int idle = sm_count / plan.tile_groups, deep = blocks / 32;
      splits = idle < deep ? idle : deep;
    }
  }
  plan.splits = splits < 1 ? 1 : splits > blocks ? blocks : splits;
  if (plan.tile_groups > kCounters) plan.splits = 1;
  plan.partial_floats = plan.splits == 1
                            ? 0
                            : size_t(plan.tile_groups) * plan.splits *
                                  (plan.tiles * plan.token_tiles * 128 << plan.row_shift);
  return plan;
}

// token_tiles: of 8 rows of x, of a warp. warps_along_m: of a thread block.
struct GemmPlan {
  int token_tiles, warps_along_m, token_blocks, row_blocks, splits;
  size_t partial_floats;
};

// Token tiles of a warp where each block of 128 channels is one group.
constexpr int kWideTokenTiles = 8;

inline GemmPlan gemm_plan(int m, int tiles, int blocks, int group_size, const Machine& machine,
                          const TacticFields& requested) {
  const int sm_count = machine.sm_count;
  GemmPlan plan{};
  plan.warps_along_m = m > 32 ? 2 : 1;
  plan.token_tiles = m > 64 && group_size == kBlockChannels ? kWideTokenTiles : 4;
  const int tokens = 8 * plan.token_tiles * plan.warps_along_m;
  plan.token_blocks = ceil_div(m, tokens);
  plan.row_blocks = ceil_div(tiles, 8);
  const int grid = plan.token_blocks * plan.row_blocks;
  int splits = requested.splits;
  if (splits == 0) {
    // As long as another split fills idle multiprocessors and leaves four blocks of channels each.
    splits = 1;
    const int room = m > 64 ? sm_count : 2 * sm_count;
    while (grid * (splits + 1) <= room && blocks / (splits + 1) >= 4) ++splits;
  }
  plan.splits = splits < 1 ? 1 : splits > blocks ? blocks : splits;
  if (grid > kCounters) plan.splits = 1;
  plan.partial_floats = plan.splits == 1 ? 0
                                         : size_t(grid) * plan.splits * 16 * tokens * 8;
  return plan;
}

}  // namespace awq_edge
