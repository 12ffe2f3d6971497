// One linear of all experts: the decode kernel where an expert has few tokens, the GEMM kernel where
// there are many. A thread block finds its expert in the list of tasks, and reads no other's weights.
#pragma once

#include "experts.h"
#include "launch.h"
#include "w4a16_decode.cuh"
#include "w4a16_gemm.cuh"

namespace awq_edge {

// Elements from one expert to the next.
struct ExpertStrides {
  size_t qweight, scale_bytes, zero_bytes, bias;

  explicit ExpertStrides(const awq_edge_w4a16_weight& w) {
    const LinearSizes s = sizes_of(w);
    const size_t blocks = size_t(s.tiles) * s.blocks;
    const size_t groups = blocks * groups_per_block(w.group_size);
    qweight = blocks * block_words(w.bits);
    scale_bytes = groups * kTileRows * 2;
    zero_bytes = groups * zero_words(w.bits) * 4;
    bias = w.out_features;
  }
};

template <typename Linear>
struct ExpertArguments {
  Linear linear;  // of expert 0
  ExpertStrides strides;
  const int32_t* order;
  const ExpertTask* tasks;
  int top_k;
  bool by_pair;
};

// The arguments of a task's expert.
template <typename T, typename Linear>
__device__ __forceinline__ Linear linear_of(const ExpertArguments<Linear>& a, ExpertTask task) {
  Linear linear = a.linear;
  const size_t expert = task.expert;
  linear.qweight += expert * a.strides.qweight;
  linear.scales += expert * a.strides.scale_bytes;
  if (linear.zeros != nullptr) linear.zeros += expert * a.strides.zero_bytes;
  if (linear.output.bias != nullptr)
    linear.output.bias = static_cast<const T*>(linear.output.bias) + expert * a.strides.bias;
  linear.m = task.count;
  return linear;
}

// Grid: tile groups, 1, tasks.
template <typename T, int kBits, int kTokenTiles, bool kOneGroup>
__global__ void __launch_bounds__(512, 1)
    expert_decode_kernel(const __grid_constant__ ExpertArguments<DecodeArguments> a) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const ExpertTask task = a.tasks[blockIdx.z];
  if (task.count == 0) return;
  const DecodeArguments linear = linear_of<T>(a, task);
  const ExpertRows rows{a.order, task.first, a.top_k, a.by_pair};
  decode_rows<T, kBits, 2, kTokenTiles, kOneGroup>(linear, rows);
}

constexpr int kExpertTokenTiles = 4, kExpertWarpsAlongM = 2;
static_assert(8 * kExpertTokenTiles * kExpertWarpsAlongM == kExpertGemmTokens, "one task a block");

// Grid: row blocks of one task after the other.
template <typename T, int kBits>
__global__ void __launch_bounds__(32 * kGemmWarpsAlongN * kExpertWarpsAlongM, 1)
    expert_gemm_kernel(const __grid_constant__ ExpertArguments<GemmArguments> a) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int row_blocks = ceil_div(a.linear.tiles, kGemmTiles);
  const ExpertTask task = a.tasks[blockIdx.x / row_blocks];
  if (task.count == 0) return;
  const GemmArguments linear = linear_of<T>(a, task);
  const ExpertRows rows{a.order, task.first, a.top_k, a.by_pair};
  gemm_rows<T, kBits, kExpertTokenTiles, kExpertWarpsAlongM>(linear, rows, 0,
                                                             blockIdx.x % row_blocks);
}

template <typename T, int kBits>
int launch_expert_decode(const ExpertLinear& e, const ExpertArguments<DecodeArguments>& arguments,
                         const DecodePlan& plan, void* stream) {
  const bool one_group = e.weight->group_size == kBlockChannels;
  auto* kernel = plan.token_tiles == 1
                     ? (one_group ? expert_decode_kernel<T, kBits, 1, true>
                                  : expert_decode_kernel<T, kBits, 1, false>)
                     : (one_group ? expert_decode_kernel<T, kBits, 2, true>
                                  : expert_decode_kernel<T, kBits, 2, false>);
  const size_t bytes = decode_shared_bytes(kBits, plan);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  return launch("awq_edge_experts: decode", kernel, dim3(plan.tile_groups, 1, e.max_tasks),
                dim3(32 * plan.warps), bytes, stream, arguments);
}

template <typename T, int kBits>
int launch_expert_gemm(const ExpertLinear& e, const ExpertArguments<GemmArguments>& arguments,
                       void* stream) {
  auto* kernel = expert_gemm_kernel<T, kBits>;
  constexpr size_t bytes = gemm_shared_bytes<kBits>(kExpertGemmTokens);
  static_assert(bytes <= 99 * 1024, "sm_86, sm_89 and sm_120 have 99 KB for a thread block");
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  const int row_blocks = ceil_div(arguments.linear.tiles, kGemmTiles);
  return launch("awq_edge_experts: gemm", kernel, dim3(unsigned(row_blocks) * e.max_tasks),
                dim3(32 * kGemmWarpsAlongN * kExpertWarpsAlongM), bytes, stream, arguments);
}

template <typename T, int kBits>
int launch_expert_bits(const ExpertLinear& e, void* stream) {
  const awq_edge_w4a16_weight& w = *e.weight;
  const LinearSizes s = sizes_of(w);
  const ExpertStrides strides(w);
  const Output output{e.y, w.bias, w.out_features, s.width, s.epilogue};
  const auto* scales = reinterpret_cast<const uint8_t*>(w.scales);
  const auto* zeros = reinterpret_cast<const uint8_t*>(w.zeros);
  if (e.m > kFewTokens) {
    const GemmArguments linear{w.qweight, scales,  zeros,        e.x,     output,
                               nullptr,   nullptr, e.m,          w.in_features, s.tiles,
                               s.blocks,  w.group_size, 1,       1};
    return launch_expert_gemm<T, kBits>(
        e, {linear, strides, e.order, e.tasks, e.top_k, e.by_pair}, stream);
  }
  const DeviceLimits& limits = device_limits();
  // Two tiles a warp, no splits; warps by the tiles of all experts that may have a token.
  const TacticFields fields{AWQ_EDGE_TACTIC_DECODE, 2, 0, 1, 0};
  DecodePlan plan = decode_plan(e.m, s.tiles * e.max_tasks, s.blocks, w.bits,
                                {limits.sm_count, limits.shared_bytes_per_block}, fields);
  plan.tile_groups = ceil_div(s.tiles, plan.tiles);
  const DecodeArguments linear{w.qweight,    scales,     zeros,        e.x,
                               output,       nullptr,    nullptr,      e.m,
                               w.in_features, s.tiles,   s.blocks,     w.group_size,
                               plan.splits,  plan.warps, plan.row_shift};
  return launch_expert_decode<T, kBits>(
      e, {linear, strides, e.order, e.tasks, e.top_k, e.by_pair}, plan, stream);
}

template <typename T>
int launch_expert_linear_as(const ExpertLinear& e, void* stream) {
  if (e.weight->bits == 3) return launch_expert_bits<T, 3>(e, stream);
  if (e.weight->bits == 4) return launch_expert_bits<T, 4>(e, stream);
  return launch_expert_bits<T, 8>(e, stream);
}

}  // namespace awq_edge
