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

#include "arrival.cuh"
#include "async_copy.cuh"
#include "w4a16_dequantize.cuh"
#include "w4a16_epilogue.cuh"
#include "w4a16_plan.h"
#include "w4a16_rows.cuh"

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
  int channel_warps;  // of a thread block
  int row_shift;      // its warps along the rows: 1 << row_shift
};

// The copies of one lane of a tile, block after block: 16 bytes of its codes at a time, and 8 bytes
// of the scales and zero points if it is one of the first lanes. Pointers advance; nothing is
// multiplied in the loop.
template <int kBits>
class TileCopy {
 public:
  TileCopy() = default;
  __device__ __forceinline__ TileCopy(const DecodeArguments& a, int tile, int block, int lane) {
    const int groups = kBlockChannels / a.group_size;
    const int scale_lanes = 4 * groups, zero_bytes = groups * zero_words(kBits) * 4;
    const size_t place = size_t(tile) * a.blocks + block;
    codes_ = reinterpret_cast<const uint8_t*>(a.qweight) + place * kCodeBytes + lane * 16;
    if (lane < scale_lanes) {
      stride_ = 32 * groups;
      parameters_ = a.scales + place * stride_ + lane * 8;
      offset_ = kCodeBytes + lane * 8;
    } else {
      stride_ = zero_bytes;
      parameters_ = a.zeros + place * stride_ + (lane - scale_lanes) * 8;
      offset_ = kCodeBytes + kScaleBytes + (lane - scale_lanes) * 8;
    }
    has_parameters_ = lane < scale_lanes + (a.zeros != nullptr ? zero_bytes / 8 : 0);
  }

  // Start copying a block into a stage, and go on by `blocks`.
  __device__ __forceinline__ void start(uint8_t* stage, int blocks, int lane) {
#pragma unroll
    for (int v = 0; v < lane_words(kBits) / 4; ++v) {
      copy_async_16(stage + (v * kLanes + lane) * 16, codes_ + v * kLanes * 16);
    }
    // Behind the vectors of 16 bytes, of which this lane's pointer has gone 16 a lane.
    if (kBits == 3) copy_async_8(stage + 512 + lane * 8, codes_ + 512 - lane * 8);
    if (has_parameters_) copy_async_8(stage + offset_, parameters_);
    codes_ += blocks * kCodeBytes;
    parameters_ += blocks * stride_;
  }

 private:
  static constexpr int kCodeBytes = block_words(kBits) * 4;
  const uint8_t* codes_;
  const uint8_t* parameters_;
  int stride_, offset_;
  bool has_parameters_;
};

// A lane's part of 128 channels of x for eight or sixteen tokens: fragments B of the eight steps.
// kWhole: every block has 128 channels; otherwise those behind the last one are zeros.
template <typename T, int kTokenTiles, bool kWhole>
class Activations {
 public:
  template <typename Rows>
  __device__ __forceinline__ Activations(const DecodeArguments& a, const Rows& rows, int block,
                                         int lane)
      : channels_(a.k - block * kBlockChannels - 8 * (lane % 4)) {
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
      // Columns of tokens that are not there repeat the last one; nobody stores their sums.
      const int token = min(8 * i + lane / 4, a.m - 1);
      rows_[i] = static_cast<const T*>(a.x) + size_t(rows.of_x(token)) * a.k +
                 block * kBlockChannels + 8 * (lane % 4);
    }
  }

  // 32 of the channels: two steps.
  __device__ __forceinline__ void load(int part) {
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) {
      values[i][part] = kWhole || 32 * part < channels_
                            ? *reinterpret_cast<const uint4*>(rows_[i] + 32 * part)
                            : make_uint4(0, 0, 0, 0);
    }
  }

  __device__ __forceinline__ void advance(int blocks) {
    channels_ -= blocks * kBlockChannels;
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) rows_[i] += blocks * kBlockChannels;
  }

  uint4 values[kTokenTiles][4];

 private:
  const T* rows_[kTokenTiles];
  int channels_;  // from the first of this lane to the last of x
};

// A lane's codes of a tile in a stage: of both halves, or of half `h` where its words are vectors.
template <int kBits>
__device__ __forceinline__ void load_words(uint32_t* words, const uint8_t* stage, int h, int lane) {
  constexpr int kVectors = kBits == 3 ? 1 : kBits / 4;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int vector = kBits == 3 ? 0 : h * kVectors + v;
    const uint4 copied = *reinterpret_cast<const uint4*>(stage + (vector * kLanes + lane) * 16);
    words[4 * v] = copied.x;
    words[4 * v + 1] = copied.y;
    words[4 * v + 2] = copied.z;
    words[4 * v + 3] = copied.w;
  }
  if constexpr (kBits == 3) {
    const uint2 copied = *reinterpret_cast<const uint2*>(stage + 512 + lane * 8);
    words[4] = copied.x;
    words[5] = copied.y;
  }
}

// sums += one block of a warp's tiles. Each part of x is replaced by what x has been advanced to as
// soon as it has been used. kOneGroup: groups of 128; otherwise of 32 or 64.
template <typename T, int kBits, int kTiles, int kTokenTiles, bool kOneGroup>
__device__ __forceinline__ void multiply_block(float (&sums)[kTiles][kTokenTiles][4],
                                               const uint8_t* stage,
                                               Activations<T, kTokenTiles, kOneGroup>& x,
                                               const DecodeArguments& a, int lane) {
  using Operand = DecodeOperand<T, kBits>;
  constexpr int kTileBytes = decode_tile_bytes(kBits);
  Operand operands[kTiles];
  uint32_t words[kTiles][kBits == 3 ? 6 : kBits];
  float group_sums[kTiles][kTokenTiles][4], x_sums[kTokenTiles][4];
#pragma unroll
  for (int part = 0; part < 4; ++part) {  // 32 channels: the smallest group
    const int channel = 32 * part, half = part / 2;
    const bool begins = kOneGroup ? part == 0 : (channel & (a.group_size - 1)) == 0;
    const bool ends = kOneGroup ? part == 3 : ((channel + 32) & (a.group_size - 1)) == 0;
    if (kBits == 3 ? part == 0 : part % 2 == 0) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        load_words<kBits>(words[tile], stage + tile * kTileBytes, half, lane);
      }
    }
    if (begins) {
      const int group = kOneGroup ? 0 : channel / a.group_size;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const uint8_t* scales = stage + tile * kTileBytes + block_words(kBits) * 4;
        const uint8_t* zeros = scales + kScaleBytes + group * zero_words(kBits) * 4;
        operands[tile].set_group(scales + group * 32, a.zeros != nullptr ? zeros : nullptr,
                                 lane / 4);
      }
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          x_sums[i][c] = 0.0f;
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) group_sums[tile][i][c] = 0.0f;
        }
      }
    }
#pragma unroll
    for (int s0 = 0; s0 < 2; ++s0) {
      uint32_t fragments[kTiles][4];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        operands[tile].fragment(fragments[tile], words[tile] + (kBits == 3 ? 3 * half : 0),
                                2 * (part % 2) + s0);
      }
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
        const uint4& b = x.values[i][part];
        const uint32_t b0 = s0 ? b.z : b.x, b1 = s0 ? b.w : b.y;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          mma_16816<T>(group_sums[tile][i], fragments[tile], b0, b1);
        }
        if constexpr (Operand::kNeedsSumOfX) {
          const uint32_t ones[4] = {0x3c003c00u, 0x3c003c00u, 0x3c003c00u, 0x3c003c00u};
          mma_16816<T>(x_sums[i], ones, b0, b1);
        }
      }
    }
    x.load(part);
    if (ends) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < kTokenTiles; ++i) {
          operands[tile].add_group(sums[tile][i], group_sums[tile][i], x_sums[i]);
        }
      }
    }
  }
}

__device__ __forceinline__ float sum_of(const float* values, int count, int stride) {
  float sum = 0.0f;
#pragma unroll 4
  for (int i = 0; i < count; ++i) sum += values[i * stride];
  return sum;
}

// Store the outputs of 1 << tile_shift tiles from the sums in shared memory, in fragment order: of
// `count` warps that share the channels, `stride` apart, which are added in their order.
template <typename T, int kTokenTiles, typename Rows>
__device__ __forceinline__ void store_outputs(const float* sums, int count, int stride,
                                              const DecodeArguments& a, const Rows& rows,
                                              int first_tile, int tile_shift) {
  const int row_shift = a.output.epilogue.paired ? 3 : 4;  // outputs of a tile
  const int column_shift = tile_shift + row_shift;
  for (int i = threadIdx.x; i < a.m << column_shift; i += blockDim.x) {
    const int token = i >> column_shift, tile = i >> row_shift & ((1 << tile_shift) - 1);
    const int row = i & ((1 << row_shift) - 1);
    const int column = ((first_tile + tile) << row_shift) + row;
    if (column >= a.output.width) continue;
    // Sum (row, token) of a tile lies in register 2 (row / 8) + token % 2 of lane 4 (row % 8) + ...
    const float* row_sums = sums + ((tile * kTokenTiles + token / 8) * 4 + token % 2) * kLanes +
                            token % 8 / 2 + 4 * (row % 8);
    const float low = sum_of(row < 8 ? row_sums : row_sums + 2 * kLanes, count, stride);
    const float high = a.output.epilogue.paired ? sum_of(row_sums + 2 * kLanes, count, stride) : 0.0f;
    static_cast<T*>(a.output.y)[size_t(rows.of_y(token)) * a.output.width + column] =
        finish<T>(a.output, column, low, high);
  }
}

// The work of a thread block: blockIdx.x of the tiles, blockIdx.y of the channels.
template <typename T, int kBits, int kTiles, int kTokenTiles, bool kOneGroup, typename Rows>
__device__ __forceinline__ void decode_rows(const DecodeArguments& a, const Rows& rows) {
  extern __shared__ __align__(128) uint8_t shared[];
  constexpr int kSums = kTiles * kTokenTiles * 128;
  constexpr int kStages = decode_stages(kBits);
  constexpr int kStageBytes = kTiles * decode_tile_bytes(kBits);
  const int lane = threadIdx.x % kLanes;
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / kLanes, 0);  // known to be uniform
  const int warps = a.channel_warps, channel_warp = warp >> a.row_shift;
  const int row_warp = warp & ((1 << a.row_shift) - 1);
  const int block_tile = (blockIdx.x << a.row_shift) * kTiles;
  const int first_tile = block_tile + row_warp * kTiles;
  int begin = channel_warp, end = a.blocks;
  if (a.splits > 1) {
    begin += int(int64_t(a.blocks) * blockIdx.y / a.splits);
    end = int(int64_t(a.blocks) * (blockIdx.y + 1) / a.splits);
  }
  uint8_t* ring = shared + warp * kStages * kStageBytes;

  let_next_kernel_start();
  TileCopy<kBits> copies[kTiles];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    copies[tile] = TileCopy<kBits>(a, min(first_tile + tile, a.tiles - 1), begin, lane);
  }
  auto copy = [&](bool is_there, int stage) {
    if (is_there) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        copies[tile].start(ring + stage * kStageBytes + tile * decode_tile_bytes(kBits), warps, lane);
      }
    }
    commit_copies();
  };
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) copy(begin + stage * warps < end, stage);
  wait_for_previous_kernel();

  float sums[kTiles][kTokenTiles][4] = {};
  Activations<T, kTokenTiles, kOneGroup> x(a, rows, min(begin, end - 1), lane);
#pragma unroll
  for (int part = 0; part < 4; ++part) x.load(part);
  for (int first = begin; first < end; first += kStages * warps) {
#pragma unroll(kOneGroup ? kStages : 1)  // unrolled, a stage's addresses are constants
    for (int stage = 0; stage < kStages; ++stage) {
      const int block = first + stage * warps;
      if (block >= end) break;
      wait_copies<kStages - 1>();
      __syncwarp();  // scales and zero points were copied by other lanes
      x.advance(block + warps < end ? warps : 0);  // the last is read twice
      multiply_block<T, kBits, kTiles, kTokenTiles, kOneGroup>(
          sums, ring + stage * kStageBytes, x, a, lane);
      __syncwarp();
      copy(block + kStages * warps < end, stage);
    }
  }

  // The warps' sums: [channel warp][row warp][kSums].
  wait_copies<0>();
  __syncthreads();
  const int block_sums = kSums << a.row_shift;
  float* all = reinterpret_cast<float*>(shared);
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
  const int tile_shift = a.row_shift + (kTiles == 2 ? 1 : 0);
  if (a.splits == 1) {
    store_outputs<T, kTokenTiles>(all, warps, block_sums, a, rows, block_tile, tile_shift);
    return;
  }
  float* total = all + warps * block_sums;
  float* partials = a.partials + size_t(blockIdx.x) * a.splits * block_sums;
  for (int i = threadIdx.x; i < block_sums; i += blockDim.x) {
    __stcg(&partials[blockIdx.y * block_sums + i], sum_of(all + i, warps, block_sums));
  }
  if (!last_to_arrive(&a.counters[blockIdx.x], a.splits)) return;
  for (int i = threadIdx.x; i < block_sums; i += blockDim.x) {
    float sum = 0.0f;
#pragma unroll 4
    for (int s = 0; s < a.splits; ++s) sum += __ldcg(&partials[s * block_sums + i]);
    total[i] = sum;
  }
  __syncthreads();
  store_outputs<T, kTokenTiles>(total, 1, 0, a, rows, block_tile, tile_shift);
}

template <typename T, int kBits, int kTiles, int kTokenTiles, bool kOneGroup>
__global__ void __launch_bounds__(512, 1) decode_kernel(const DecodeArguments a) {
  decode_rows<T, kBits, kTiles, kTokenTiles, kOneGroup>(a, SameRows{});
}

}  // namespace awq_edge
