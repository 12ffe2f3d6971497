// y = x W^T for many rows of x: tensor-core tiles, W dequantized in registers.
//
// A thread block computes 128 rows of W (8 tiles) by kTokens rows of x, 128 channels at a time. Four
// warps lie along W, each with two tiles; one or two along x.
//
//             x [kTokens, 128]            as in decode, a group's sums are float32 of exact
//            ┌────────┬────────┐          integers, and its scale is applied to them in float32:
//   W warp 0 │ 32 x   │        │          no weight is rounded
//     warp 1 │ tokens │        │
//     warp 2 │        │        │          shared memory: two stages of x, codes and scales
//     warp 3 └────────┴────────┘
#pragma once

#include "arrival.cuh"
#include "async_copy.cuh"
#include "w4a16_dequantize.cuh"
#include "w4a16_epilogue.cuh"
#include "w4a16_plan.h"
#include "w4a16_rows.cuh"

namespace awq_edge {

struct GemmArguments {
  const uint32_t* qweight;
  const uint8_t* scales;
  const uint8_t* zeros;  // may be null
  const void* x;
  Output output;
  float* partials;  // [thread block][split][sum of a thread][thread]
  unsigned* counters;
  int m, k;
  int tiles, blocks;
  int group_size;
  int token_blocks;  // thread blocks along x
  int splits;
};

constexpr int kGemmWarpsAlongN = 4;
constexpr int kGemmTilesPerWarp = 2;
constexpr int kGemmTiles = kGemmWarpsAlongN * kGemmTilesPerWarp;
constexpr int kGemmStages = 2;
constexpr int kRasterTokens = 8;  // neighbours in a column of thread blocks, for the L2 cache

template <int kBits>
constexpr int gemm_weight_bytes() {  // codes, scales and zero points of a stage
  return kGemmTiles * (block_words(kBits) * 4 + 4 * 32 + 4 * zero_words(kBits) * 4);
}
constexpr int gemm_x_bytes(int tokens) { return tokens * kBlockChannels * 2; }
template <int kBits>
constexpr size_t gemm_shared_bytes(int tokens) {
  return size_t(kGemmStages) * (gemm_x_bytes(tokens) + gemm_weight_bytes<kBits>());
}

// The place of 8 channels of a token in a stage: `chunk` 0..15. Tokens of odd number have the two
// halves of each 64 channels exchanged, so that the eight lanes of one access meet all banks.
AWQ_EDGE_HD int x_chunk_offset(int tokens, int token, int chunk) {
  const int half = chunk / 8;
  return (half * tokens + token) * 128 + ((chunk % 8) ^ ((token & 1) << 2)) * 16;
}

// Thread blocks in columns of kRasterTokens along x, so that those at work together share W and x.
AWQ_EDGE_HD void raster(int index, int token_blocks, int row_blocks, int* token_block,
                        int* row_block) {
  const int column = kRasterTokens * row_blocks;
  const int first = index / column * kRasterTokens;
  const int height = token_blocks - first < kRasterTokens ? token_blocks - first : kRasterTokens;
  *token_block = first + index % column % height;
  *row_block = index % column / height;
}

template <typename T, int kBits, int kTokenTiles, int kWarpsAlongM, typename Rows = SameRows>
class GemmBlock {
 public:
  // Group size 128, known when this is compiled: no branch then hinders scheduling. The plan gives
  // other groups narrower tiles, which are cheaper to compile twice over.
  static constexpr bool kWholeBlocks = kTokenTiles == kWideTokenTiles;
  static constexpr int kThreads = 32 * kGemmWarpsAlongN * kWarpsAlongM;
  static constexpr int kTokens = 8 * kTokenTiles * kWarpsAlongM;
  static constexpr int kXBytes = gemm_x_bytes(kTokens);
  static constexpr int kStageBytes = kXBytes + gemm_weight_bytes<kBits>();
  static constexpr int kCodeBytes = block_words(kBits) * 4;
  static constexpr int kScaleOffset = kGemmTiles * kCodeBytes;
  static constexpr int kZeroOffset = kScaleOffset + kGemmTiles * 128;
  static constexpr int kZeroGroupBytes = zero_words(kBits) * 4;
  static constexpr int kZeroBytes = 4 * kZeroGroupBytes;
  static constexpr int kXChunks = kBlockChannels / 8;  // of 16 bytes, in a block of one token
  static constexpr int kXCopies = kTokens * kXChunks / kThreads;
  static constexpr int kVectors = kCodeBytes / 16;
  static constexpr int kCodeCopies = (kGemmTiles * kVectors + kThreads - 1) / kThreads;

  // first_block: of 128 channels, the first one that is copied.
  __device__ __forceinline__ GemmBlock(const GemmArguments& a, const Rows& rows, uint8_t* shared,
                                       int first_token, int first_tile, int first_block)
      : a_(a), rows_(rows), shared_(shared), first_token_(first_token), first_tile_(first_tile) {
    const int thread = threadIdx.x;
    const int chunk = thread % kXChunks;
    channel_ = first_block * kBlockChannels + chunk * 8;
#pragma unroll
    for (int i = 0; i < kXCopies; ++i) {
      // Tokens that are not there repeat the last one; nobody stores their sums.
      const int token = min(first_token + thread / kXChunks + i * (kThreads / kXChunks), a.m - 1);
      x_[i] = static_cast<const T*>(a.x) + size_t(rows.of_x(token)) * a.k + channel_;
    }
    x_offset_ = x_chunk_offset(kTokens, thread / kXChunks, chunk);
    static_assert(kThreads / kXChunks % 2 == 0, "the exchange of halves is that of the first token");
#pragma unroll
    for (int i = 0; i < kCodeCopies; ++i) {
      const int copy = thread + i * kThreads;
      const int tile = min(copy / kVectors, kGemmTiles - 1);
      codes_[i] = a.qweight +
                  (size_t(tile_at(tile)) * a.blocks + first_block) * block_words(kBits) +
                  copy % kVectors * 4;
    }
    // Scales of a tile and block: two copies of 16 bytes a group; zero points: one or two of 8.
    groups_ = kWholeBlocks ? 1 : kBlockChannels / a.group_size;
    const int copies = 2 * groups_;
    scale_tile_ = thread / copies;
    const size_t group = (size_t(tile_at(scale_tile_)) * a.blocks + first_block) * groups_;
    scales_ = a.scales + group * 32 + thread % copies * 16;
    zero_copies_ = groups_ * kZeroGroupBytes / 8;
    const int zero_tile = thread / zero_copies_;
    const size_t zero_group = (size_t(tile_at(zero_tile)) * a.blocks + first_block) * groups_;
    zeros_ = a.zeros == nullptr || zero_tile >= kGemmTiles
                 ? nullptr
                 : a.zeros + zero_group * kZeroGroupBytes + thread % zero_copies_ * 8;
  }

  // Start copying the next block of the weights.
  __device__ __forceinline__ void copy_weights(int stage) {
    const int thread = threadIdx.x;
    uint8_t* to = shared_ + stage * kStageBytes + kXBytes;
#pragma unroll
    for (int i = 0; i < kCodeCopies; ++i) {
      if ((i + 1) * kThreads <= kGemmTiles * kVectors ||
          thread + i * kThreads < kGemmTiles * kVectors) {
        copy_async_16(to + (thread + i * kThreads) * 16, codes_[i]);
      }
      codes_[i] += block_words(kBits);
    }
    if (scale_tile_ < kGemmTiles) {
      copy_async_16(to + kScaleOffset + scale_tile_ * 128 + thread % (2 * groups_) * 16, scales_);
    }
    scales_ += groups_ * 32;
    if (zeros_ != nullptr) {
      copy_async_8(to + kZeroOffset + thread / zero_copies_ * kZeroBytes +
                       thread % zero_copies_ * 8,
                   zeros_);
      zeros_ += groups_ * kZeroGroupBytes;
    }
  }

  // Start copying the next block of x.
  __device__ __forceinline__ void copy_x(int stage) {
    uint8_t* to = shared_ + stage * kStageBytes + x_offset_;
    const int bytes = channel_ < a_.k ? 16 : 0;
#pragma unroll
    for (int i = 0; i < kXCopies; ++i) {
      copy_async_16(to + i * (kThreads / kXChunks) * 128, bytes ? x_[i] : a_.x, bytes);
      x_[i] += kBlockChannels;
    }
    channel_ += kBlockChannels;
  }

  // sums += the block in `stage`.
  __device__ __forceinline__ void multiply(float (&sums)[kGemmTilesPerWarp][kTokenTiles][4],
                                           int stage) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint8_t* x = shared_ + stage * kStageBytes;
    const int first_tile = warp % kGemmWarpsAlongN * kGemmTilesPerWarp;
    const int first_token = warp / kGemmWarpsAlongN * 8 * kTokenTiles;
    const int group_size = kWholeBlocks ? kBlockChannels : a_.group_size;
    float group_sums[kGemmTilesPerWarp][kTokenTiles][4];
    Dequantizer<T, kBits> dequantizer[kGemmTilesPerWarp];
    GroupParameters parameters[kGemmTilesPerWarp];
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      if ((32 * part & (group_size - 1)) == 0) {
#pragma unroll
        for (int tile = 0; tile < kGemmTilesPerWarp; ++tile) {
          parameters[tile] = group(stage, first_tile + tile, 32 * part / group_size, lane / 4);
          dequantizer[tile].set_zeros(parameters[tile].zero0, parameters[tile].zero1);
#pragma unroll
          for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
            for (int c = 0; c < 4; ++c) group_sums[tile][i][c] = 0.0f;
          }
        }
      }
      uint4 b[kTokenTiles];
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
        const int token = first_token + 8 * i + lane / 4;
        b[i] = *reinterpret_cast<const uint4*>(
            x + x_chunk_offset(kTokens, token, 4 * part + lane % 4));
      }
      uint32_t fragments[kGemmTilesPerWarp][2][4];
#pragma unroll
      for (int tile = 0; tile < kGemmTilesPerWarp; ++tile) {
        uint32_t words[kBits];
        load_half(words, stage, first_tile + tile, part / 2, lane);
#pragma unroll
        for (int s0 = 0; s0 < 2; ++s0) {
          dequantizer[tile].fragment(fragments[tile][s0], words, 2 * (part % 2) + s0);
        }
      }
      // Sums of one token tile are far apart: a product waits for the one before it.
#pragma unroll
      for (int s0 = 0; s0 < 2; ++s0) {
#pragma unroll
        for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
          for (int tile = 0; tile < kGemmTilesPerWarp; ++tile) {
            mma_16816<T>(group_sums[tile][i], fragments[tile][s0], s0 ? b[i].z : b[i].x,
                         s0 ? b[i].w : b[i].y);
          }
        }
      }
      if (((32 * part + 32) & (group_size - 1)) == 0) {
#pragma unroll
        for (int tile = 0; tile < kGemmTilesPerWarp; ++tile) {
          const GroupParameters& p = parameters[tile];
#pragma unroll
          for (int i = 0; i < kTokenTiles; ++i) {
            float(&to)[4] = sums[tile][i];
            const float(&from)[4] = group_sums[tile][i];
            to[0] = fmaf(p.scale0, from[0], to[0]);
            to[1] = fmaf(p.scale0, from[1], to[1]);
            to[2] = fmaf(p.scale1, from[2], to[2]);
            to[3] = fmaf(p.scale1, from[3], to[3]);
          }
        }
      }
    }
  }

  // Write the outputs through shared memory, so that a row of y is stored 16 bytes at a time.
  __device__ __forceinline__ void store(
      const float (&sums)[kGemmTilesPerWarp][kTokenTiles][4]) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int per_tile = tile_outputs(a_.output);
    const int stride = kGemmTiles * per_tile + 8;
    T* staged = reinterpret_cast<T*>(shared_);  // [kTokens, stride]
    const int first_column = first_tile_ * per_tile;
#pragma unroll
    for (int tile = 0; tile < kGemmTilesPerWarp; ++tile) {
      const int in_block =
          (warp % kGemmWarpsAlongN * kGemmTilesPerWarp + tile) * per_tile + lane / 4;
      const int column = first_column + in_block;
#pragma unroll
      for (int i = 0; i < kTokenTiles; ++i) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int token = (warp / kGemmWarpsAlongN * kTokenTiles + i) * 8 + 2 * (lane % 4) + c;
          T* to = staged + token * stride + in_block;
          if (column < a_.output.width) {
            to[0] = finish<T>(a_.output, column, sums[tile][i][c], sums[tile][i][c + 2]);
          }
          if (!a_.output.epilogue.paired && column + 8 < a_.output.width) {
            to[8] = finish<T>(a_.output, column + 8, sums[tile][i][c + 2], 0.0f);
          }
        }
      }
    }
    __syncthreads();
    const int columns = min(kGemmTiles * per_tile, a_.output.width - first_column);
    const int tokens = min(kTokens, a_.m - first_token_);
    const auto row = [&](int token) {
      return static_cast<T*>(a_.output.y) +
             size_t(rows_.of_y(first_token_ + token)) * a_.output.width + first_column;
    };
    if (a_.output.width % 8 == 0) {
      const int vectors = columns / 8;
      for (int i = threadIdx.x; i < tokens * vectors; i += kThreads) {
        const int token = i / vectors, vector = i % vectors;
        *reinterpret_cast<uint4*>(row(token) + vector * 8) =
            *reinterpret_cast<const uint4*>(staged + token * stride + vector * 8);
      }
    } else {
      for (int i = threadIdx.x; i < tokens * columns; i += kThreads) {
        const int token = i / columns, column = i % columns;
        row(token)[column] = staged[token * stride + column];
      }
    }
  }

 private:
  __device__ __forceinline__ int tile_at(int i) const {
    return min(first_tile_ + i, a_.tiles - 1);
  }

  __device__ __forceinline__ GroupParameters group(int stage, int tile, int index, int g) const {
    const uint8_t* weights = shared_ + stage * kStageBytes + kXBytes;
    const uint8_t* zeros = a_.zeros == nullptr ? nullptr
                                               : weights + kZeroOffset + tile * kZeroBytes +
                                                     index * kZeroGroupBytes;
    return group_parameters<kBits>(weights + kScaleOffset + tile * 128 + index * 32, zeros, g);
  }

  // A lane's words of half `h` of a tile.
  __device__ __forceinline__ void load_half(uint32_t (&words)[kBits], int stage, int tile, int h,
                                            int lane) const {
    const uint8_t* codes = shared_ + stage * kStageBytes + kXBytes + tile * kCodeBytes;
    if constexpr (kBits == 3) {
      const uint32_t* all = reinterpret_cast<const uint32_t*>(codes);
#pragma unroll
      for (int u = 0; u < 3; ++u) words[u] = all[word_index(3, lane, 3 * h + u)];
    } else {
#pragma unroll
      for (int v = 0; v < kBits / 4; ++v) {
        const uint4 vector = *reinterpret_cast<const uint4*>(
            codes + ((h * (kBits / 4) + v) * kLanes + lane) * 16);
        words[4 * v] = vector.x;
        words[4 * v + 1] = vector.y;
        words[4 * v + 2] = vector.z;
        words[4 * v + 3] = vector.w;
      }
    }
  }

  const GemmArguments& a_;
  const Rows& rows_;
  uint8_t* shared_;
  int first_token_;
  int first_tile_;
  // The addresses that this thread copies next.
  const T* x_[kXCopies];
  const uint32_t* codes_[kCodeCopies];
  const uint8_t* scales_;
  const uint8_t* zeros_;  // null: nothing
  int channel_, x_offset_, groups_, scale_tile_, zero_copies_;
};

// The work of a thread block on one block of tokens and one of rows; blockIdx.y of the channels.
template <typename T, int kBits, int kTokenTiles, int kWarpsAlongM, typename Rows>
__device__ __forceinline__ void gemm_rows(const GemmArguments& a, const Rows& rows,
                                          int token_block, int row_block) {
  using Block = GemmBlock<T, kBits, kTokenTiles, kWarpsAlongM, Rows>;
  extern __shared__ __align__(128) uint8_t shared[];
  const int begin = int(int64_t(a.blocks) * blockIdx.y / a.splits);
  const int end = int(int64_t(a.blocks) * (blockIdx.y + 1) / a.splits);
  Block work(a, rows, shared, token_block * Block::kTokens, row_block * kGemmTiles, begin);

  float sums[kGemmTilesPerWarp][kTokenTiles][4] = {};
  if (begin < end) work.copy_weights(0);
  wait_for_previous_kernel();
  if (begin < end) work.copy_x(0);
  commit_copies();
  for (int block = begin; block < end; ++block) {
    const int stage = (block - begin) % kGemmStages;
    wait_copies<0>();
    __syncthreads();  // the stage is there for all, and the other one is no longer read
    if (block + 1 < end) {
      work.copy_weights(stage ^ 1);
      work.copy_x(stage ^ 1);
    }
    commit_copies();
    work.multiply(sums, stage);
  }
  __syncthreads();

  if (a.splits > 1) {
    constexpr int kSums = kGemmTilesPerWarp * kTokenTiles * 4;
    float* flat = &sums[0][0][0];
    float* partials = a.partials + size_t(blockIdx.x) * a.splits * kSums * Block::kThreads;
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      __stcg(&partials[(size_t(blockIdx.y) * kSums + i) * Block::kThreads + threadIdx.x], flat[i]);
    }
    if (!last_to_arrive(&a.counters[blockIdx.x], a.splits)) return;
#pragma unroll
    for (int i = 0; i < kSums; ++i) flat[i] = 0.0f;
    for (int s = 0; s < a.splits; ++s) {  // all loads of a split are under way together
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        flat[i] += __ldcg(&partials[(size_t(s) * kSums + i) * Block::kThreads + threadIdx.x]);
      }
    }
  }
  work.store(sums);
}

template <typename T, int kBits, int kTokenTiles, int kWarpsAlongM>
__global__ void __launch_bounds__(32 * kGemmWarpsAlongN * kWarpsAlongM, kWarpsAlongM == 2 ? 1 : 2)
    gemm_kernel(const __grid_constant__ GemmArguments a) {
  let_next_kernel_start();
  int token_block, row_block;
  raster(blockIdx.x, a.token_blocks, ceil_div(a.tiles, kGemmTiles), &token_block, &row_block);
  gemm_rows<T, kBits, kTokenTiles, kWarpsAlongM>(a, SameRows{}, token_block, row_block);
}

}  // namespace awq_edge
