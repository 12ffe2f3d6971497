// How the work of a quantized linear is divided: pure arithmetic, the same for the workspace query,
// the launch and the tests.
#pragma once

#include "awq_edge_kernels.h"
#include "w4a16_layout.h"

namespace awq_edge {

constexpr int kMaxDecodeTokens = 16;
constexpr int kMaxTokens = 65535;
constexpr int kCounters = AWQ_EDGE_COUNTER_BYTES / 4;

// A tactic may carry its partition: AWQ_EDGE_TACTIC_* | tiles << 8 | warps << 12 | splits << 20.
struct TacticFields {
  int tactic, tiles, warps, splits;
};
inline TacticFields tactic_fields(int tactic) {
  return {tactic & 0xff, tactic >> 8 & 0xf, tactic >> 12 & 0xff, tactic >> 20 & 0xff};
}

// tiles: of 16 rows in a thread block. splits: thread blocks that share the channels.
struct DecodePlan {
  int token_tiles, tiles, warps, splits, tile_groups;
  size_t partial_floats;
};

inline DecodePlan decode_plan(int m, int tiles, int blocks, int sm_count, TacticFields asked) {
  DecodePlan plan{};
  plan.token_tiles = m > 8 ? 2 : 1;
  plan.tiles = asked.tiles ? asked.tiles : (tiles >= 2 * sm_count ? 2 : 1);
  plan.tile_groups = ceil_div(tiles, plan.tiles);
  plan.warps = asked.warps ? asked.warps : (blocks >= 16 ? 8 : 4);
  int splits = asked.splits;
  if (splits == 0) {
    // Enough thread blocks for two on every multiprocessor, each with four blocks a warp at least.
    splits = 1;
    while (plan.tile_groups * splits < sm_count && blocks / (splits + 1) >= 2 * plan.warps) {
      ++splits;
    }
  }
  plan.splits = splits < 1 ? 1 : splits > blocks ? blocks : splits;
  if (plan.tile_groups > kCounters) plan.splits = 1;
  plan.partial_floats = plan.splits == 1 ? 0
                                         : size_t(plan.tile_groups) * plan.splits * plan.tiles *
                                               plan.token_tiles * 128;
  return plan;
}

// token_tiles: of 8 rows of x, of a warp. warps_along_m: of a thread block.
struct GemmPlan {
  int token_tiles, warps_along_m, token_blocks, row_blocks, splits;
  size_t partial_floats;
};

inline GemmPlan gemm_plan(int m, int tiles, int blocks, int sm_count, TacticFields asked) {
  GemmPlan plan{};
  plan.warps_along_m = m > 32 ? 2 : 1;
  plan.token_tiles = m > 64 ? 8 : 4;
  const int tokens = 8 * plan.token_tiles * plan.warps_along_m;
  plan.token_blocks = ceil_div(m, tokens);
  plan.row_blocks = ceil_div(tiles, 8);
  const int grid = plan.token_blocks * plan.row_blocks;
  int splits = asked.splits;
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
