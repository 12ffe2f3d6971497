// y = x W^T for one to sixteen rows of x: every byte of W is read once, by the lane that uses it.
//
//   x row (token) g ─┐                    8 or 16 columns of B
//   W tile: 16 rows ─┴─ mma.m16n8k16 ─ float32 sums of a group ─ x scale ─ sums of the row
//
// A warp computes kTiles tiles (16 rows each). The warps of a thread block lie along the rows
// (row_warps of them) and share the blocks of 128 channels in turns: those along the rows read the
// same part of x at the same time, from the L1 cache all but once. Each keeps several blocks under
// way in shared memory of its own: copies are asynchronous and need no registers and no barrier. At
// the end the sums of warps with the same rows are added in order. Where this would leave
// multiprocessors idle, several thread blocks share the channels; the last to arrive adds their
// sums, also in order.
#pragma once

#include "async_copy.cuh"
#include "w4a16_dequantize.cuh"
#include "w4a16_epilogue.cuh"
#include "w4a16_plan.h"

namespace awq_edge {

struct DecodeArguments {
  const uint32_t* qweight;
  const uint8_t* scales;  // bytes
  const uint8_t* zeros;   // bytes, may be null
  const void* x;
  Output output;
  float* partials;  // [tile group][split][sums]
  unsigned* counters;
  int m, k;
  int tiles, blocks;
  int group_size;
  int splits;
  int row_warps;
};

// Start copying one tile's block into a stage.
template <int kBits>
__device__ __forceinline__ void copy_block(uint8_t* stage, const DecodeArguments& a, int tile,
                                           int block, int lane) {
  constexpr int kWords = block_words(kBits);
  const uint32_t* codes = a.qweight + (size_t(tile) * a.blocks + block) * kWords;
#pragma unroll
  for (int v = 0; v < lane_words(kBits) / 4; ++v) {
    copy_async_16(stage + (v * kLanes + lane) * 16, codes + (v * kLanes + lane) * 4);
  }
  if (kBits == 3) copy_async_8(stage + 512 + lane * 8, codes + 128 + lane * 2);
  const int groups = kBlockChannels / a.group_size;
  const size_t group = (size_t(tile) * a.blocks + block) * groups;
  uint8_t* parameters = stage + kWords * 4;
  if (lane < 2 * groups) copy_async_16(parameters + lane * 16, a.scales + group * 32 + lane * 16);
  if (a.zeros != nullptr) {
    constexpr int kZeroBytes = zero_words(kBits) * 4;
    const int copies = groups * kZeroBytes / 8;
    if (lane >= 16 && lane - 16 < copies) {
      copy_async_8(parameters + 128 + (lane - 16) * 8,
                   a.zeros + group * kZeroBytes + (lane - 16) * 8);
    }
  }
}

// A lane's part of 128 channels of x for eight tokens: fragments B of the eight steps.
template <int kTokenTiles>
struct Activations {
  uint4 parts[kTokenTiles][4];  // 32 channels each: two steps
};

template <typename T, int kTokenTiles>
__device__ __forceinline__ void load_activations(Activations<kTokenTiles>& x,
                                                 const DecodeArguments& a, int block, int lane) {
#pragma unroll
  for (int i = 0; i < kTokenTiles; ++i) {
    // Columns of tokens that are not there repeat the last one; nobody stores their sums.
    const int token = min(8 * i + lane / 4, a.m - 1);
    const T* row = static_cast<const T*>(a.x) + size_t(token) * a.k;
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const int channel = block * kBlockChannels + 32 * part + 8 * (lane % 4);
      x.parts[i][part] = channel < a.k ? *reinterpret_cast<const uint4*>(row + channel)
                                       : make_uint4(0, 0, 0, 0);
    }
  }
}

// sums += one block of one tile.
template <typename T, int kBits, int kTokenTiles>
__device__ __forceinline__ void multiply_block(float (&sums)[kTokenTiles][4], const uint8_t* stage,
                                               const Activations<kTokenTiles>& x, int group_size,
                                               bool has_zeros, int lane) {
  constexpr int kHalfWords = kBits;  // words of a lane in 64 channels
  uint32_t words[2 * kHalfWords];
#pragma unroll
  for (int v = 0; v < lane_words(kBits) / 4; ++v) {
    const uint4 vector = *reinterpret_cast<const uint4*>(stage + (v * kLanes + lane) * 16);
    words[4 * v] = vector.x;
    words[4 * v + 1] = vector.y;
    words[4 * v + 2] = vector.z;
    words[4 * v + 3] = vector.w;
  }
  if constexpr (kBits == 3) {
    const uint2 vector = *reinterpret_cast<const uint2*>(stage + 512 + lane * 8);
    words[4] = vector.x;
    words[5] = vector.y;
  }
  const uint8_t* scales = stage + block_words(kBits) * 4;
  Dequantizer<T, kBits> dequantizer;
  GroupParameters parameters;
  float group_sums[kTokenTiles][4];
#pragma unroll
  for (int part = 0; part < 4; ++part) {  // 32 channels: the smallest group
    const int channel = 32 * part;
    if ((channel & (group_size - 1)) == 0) {
      const int group = channel / group_size;
      const uint8_t* zeros =
          has_zeros ? scales + 128 + group * zero_words(kBits) * 4 : nullptr;
      parameters = group_parameters<kBits>(scales + group * 32, zeros, lane / 4);
      dequantizer.set_zeros(parameters.zero0, parameters.zero1);
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
        for (int c = 0; c < 4; ++c) group_sums[i][c] = 0.0f;
      }
    }
#pragma unroll
    for (int s0 = 0; s0 < 2; ++s0) {
      uint32_t fragment[4];
      dequantizer.fragment(fragment, words + kHalfWords * (part / 2), 2 * (part % 2) + s0);
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
        const uint4& b = x.parts[i][part];
        mma_16816<T>(group_sums[i], fragment, s0 ? b.z : b.x, s0 ? b.w : b.y);
      }
    }
    if (((channel + 32) & (group_size - 1)) == 0) {
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
        sums[i][0] = fmaf(parameters.scale0, group_sums[i][0], sums[i][0]);
        sums[i][1] = fmaf(parameters.scale0, group_sums[i][1], sums[i][1]);
        sums[i][2] = fmaf(parameters.scale1, group_sums[i][2], sums[i][2]);
        sums[i][3] = fmaf(parameters.scale1, group_sums[i][3], sums[i][3]);
      }
    }
  }
}

// Store the outputs of `tiles` tiles from their sums in shared memory, in fragment order.
template <typename T, int kTokenTiles>
__device__ __forceinline__ void store_outputs(const float* sums, const DecodeArguments& a,
                                              int first_tile, int tiles) {
  const int per_tile = tile_outputs(a.output.silu_mul);
  const int columns = tiles * per_tile;
  for (int i = threadIdx.x; i < columns * a.m; i += blockDim.x) {
    const int token = i / columns, tile = i % columns / per_tile, row = i % per_tile;
    const int column = (first_tile + tile) * per_tile + row;
    if (column >= a.output.width) continue;
    // Sum (row, token) of a tile lies in register 2 (row / 8) + token % 2 of lane 4 (row % 8) + ...
    const float* tokens =
        sums + ((tile * kTokenTiles + token / 8) * 4 + token % 2) * kLanes + token % 8 / 2;
    const float low = tokens[4 * (row % 8)], high = tokens[2 * kLanes + 4 * (row % 8)];
    const float sum = row < 8 ? low : high;
    static_cast<T*>(a.output.y)[size_t(token) * a.output.width + column] =
        finish<T>(a.output, column, sum, high);
  }
}

// `value`, which sm_80's compiler may not know to stay the same: with two tiles by two token tiles it
// would keep addresses through the loop in registers that it does not have, and spill.
template <int kSumTiles>
__device__ __forceinline__ int recomputed(int value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 800
  if (kSumTiles >= 4) asm volatile("" : "+r"(value));
#endif
  return value;
}

template <typename T, int kBits, int kTiles, int kTokenTiles>
__global__ void __launch_bounds__(512) decode_kernel(const DecodeArguments a) {
  extern __shared__ __align__(128) uint8_t shared[];
  constexpr int kTileBytes = decode_tile_bytes(kBits);
  constexpr int kSums = kTiles * kTokenTiles * 128;
  constexpr int kStages = decode_stages(kBits);
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int row_warps = a.row_warps, warps = blockDim.x / kLanes / row_warps;  // along channels
  const int row_warp = warp % row_warps, channel_warp = warp / row_warps;
  const int block_tile = blockIdx.x * row_warps * kTiles;
  const int first_tile = block_tile + row_warp * kTiles;
  const int begin = int(int64_t(a.blocks) * blockIdx.y / a.splits);
  const int end = int(int64_t(a.blocks) * (blockIdx.y + 1) / a.splits);
  uint8_t* ring = shared + warp * kStages * kTiles * kTileBytes;

  let_next_kernel_start();
  auto copy = [&](int block, int stage) {
    if (block < end) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        constexpr int kSumTiles = kTiles * kTokenTiles;
        const int from = recomputed<kSumTiles>(min(first_tile + tile, a.tiles - 1));
        copy_block<kBits>(ring + (stage * kTiles + tile) * kTileBytes, a, from, block,
                          recomputed<kSumTiles>(lane));
      }
    }
    commit_copies();
  };
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) copy(begin + channel_warp + stage * warps, stage);
  wait_for_previous_kernel();

  float sums[kTiles][kTokenTiles][4] = {};
  Activations<kTokenTiles> x, next;
  int block = begin + channel_warp, stage = 0;
  if (block < end) load_activations<T>(x, a, block, lane);
  for (; block < end; block += warps) {
    wait_copies<kStages - 1>();
    __syncwarp();  // scales and zero points were copied by other lanes
    if (block + warps < end) {
      load_activations<T>(next, a, block + warps, recomputed<kTiles * kTokenTiles>(lane));
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      multiply_block<T, kBits>(sums[tile], ring + (stage * kTiles + tile) * kTileBytes, x,
                               a.group_size, a.zeros != nullptr, lane);
    }
    __syncwarp();
    copy(block + kStages * warps, stage);
    x = next;
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }

  // The warps' sums, in their order.
  wait_copies<0>();
  __syncthreads();
  const int block_sums = row_warps * kSums;
  float* all = reinterpret_cast<float*>(shared);  // [channel warp][row warp][kSums]
  float* total = all + warps * block_sums;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        all[warp * kSums + ((tile * kTokenTiles + i) * 4 + c) * kLanes + lane] = sums[tile][i][c];
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < block_sums; i += blockDim.x) {
    float sum = 0.0f;
    for (int w = 0; w < warps; ++w) sum += all[w * block_sums + i];
    total[i] = sum;
  }
  if (a.splits > 1) {
    float* partials = a.partials + size_t(blockIdx.x) * a.splits * block_sums;
    for (int i = threadIdx.x; i < block_sums; i += blockDim.x) {
      __stcg(&partials[blockIdx.y * block_sums + i], total[i]);
    }
    __threadfence();
    __syncthreads();
    __shared__ bool is_last;
    if (threadIdx.x == 0) {
      is_last = atomicAdd(&a.counters[blockIdx.x], 1u) == unsigned(a.splits - 1);
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    if (threadIdx.x == 0) a.counters[blockIdx.x] = 0;
    for (int i = threadIdx.x; i < block_sums; i += blockDim.x) {
      float sum = 0.0f;
#pragma unroll 4
      for (int s = 0; s < a.splits; ++s) sum += __ldcg(&partials[s * block_sums + i]);
      total[i] = sum;
    }
  }
  __syncthreads();
  store_outputs<T, kTokenTiles>(total, a, block_tile, row_warps * kTiles);
}

}  // namespace awq_edge
