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

#include "async_copy.cuh"
#include "w4a16_dequantize.cuh"
#include "w4a16_epilogue.cuh"

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

// Where 8 channels of a token lie in a stage: `chunk` 0..15. Tokens of odd number have the two halves
// of each 64 channels exchanged, so that the eight lanes of one access meet all banks.
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

// kWholeBlocks: group_size is 128, known when this is compiled: no branch then hinders scheduling.
template <typename T, int kBits, int kTokenTiles, int kWarpsAlongM, bool kWholeBlocks>
class GemmBlock {
 public:
  static constexpr int kThreads = 32 * kGemmWarpsAlongN * kWarpsAlongM;
  static constexpr int kTokens = 8 * kTokenTiles * kWarpsAlongM;
  static constexpr int kXBytes = gemm_x_bytes(kTokens);
  static constexpr int kStageBytes = kXBytes + gemm_weight_bytes<kBits>();
  static constexpr int kCodeBytes = block_words(kBits) * 4;
  static constexpr int kScaleOffset = kGemmTiles * kCodeBytes;
  static constexpr int kZeroOffset = kScaleOffset + kGemmTiles * 128;
  static constexpr int kZeroBytes = 4 * zero_words(kBits) * 4;

  __device__ GemmBlock(const GemmArguments& a, uint8_t* shared, int first_token, int first_tile)
      : a_(a), shared_(shared), first_token_(first_token), first_tile_(first_tile) {}

  __device__ __forceinline__ void copy_weights(int block, int stage) const {
    uint8_t* to = shared_ + stage * kStageBytes + kXBytes;
    constexpr int kVectors = kCodeBytes / 16;
    for (int i = threadIdx.x; i < kGemmTiles * kVectors; i += kThreads) {
      const int tile = min(first_tile_ + i / kVectors, a_.tiles - 1);
      const uint32_t* from =
          a_.qweight + (size_t(tile) * a_.blocks + block) * block_words(kBits) + i % kVectors * 4;
      copy_async_16(to + i * 16, from);
    }
    const int groups = kBlockChannels / a_.group_size;
    for (int i = threadIdx.x; i < kGemmTiles * 2 * groups; i += kThreads) {
      const int tile = i / (2 * groups), part = i % (2 * groups);
      const size_t group = (size_t(tile_at(tile)) * a_.blocks + block) * groups;
      copy_async_16(to + kScaleOffset + tile * 128 + part * 16, a_.scales + group * 32 + part * 16);
    }
    if (a_.zeros == nullptr) return;
    constexpr int kBytes = zero_words(kBits) * 4;
    const int parts = groups * kBytes / 8;
    for (int i = threadIdx.x; i < kGemmTiles * parts; i += kThreads) {
      const int tile = i / parts, part = i % parts;
      const size_t group = (size_t(tile_at(tile)) * a_.blocks + block) * groups;
      copy_async_8(to + kZeroOffset + tile * kZeroBytes + part * 8,
                   a_.zeros + group * kBytes + part * 8);
    }
  }

  __device__ __forceinline__ void copy_x(int block, int stage) const {
    uint8_t* to = shared_ + stage * kStageBytes;
#pragma unroll 4
    for (int i = threadIdx.x; i < kTokens * 16; i += kThreads) {
      const int token = i / 16, chunk = i % 16, channel = block * kBlockChannels + chunk * 8;
      const bool inside = first_token_ + token < a_.m && channel < a_.k;
      const T* from = static_cast<const T*>(a_.x) +
                      (inside ? size_t(first_token_ + token) * a_.k + channel : 0);
      copy_async_16(to + x_chunk_offset(kTokens, token, chunk), from, inside ? 16 : 0);
    }
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
    const int per_tile = tile_outputs(a_.output.silu_mul);
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
          if (!a_.output.silu_mul && column + 8 < a_.output.width) {
            to[8] = finish<T>(a_.output, column + 8, sums[tile][i][c + 2], 0.0f);
          }
        }
      }
    }
    __syncthreads();
    const int columns = min(kGemmTiles * per_tile, a_.output.width - first_column);
    const int tokens = min(kTokens, a_.m - first_token_);
    T* y = static_cast<T*>(a_.output.y) + size_t(first_token_) * a_.output.width + first_column;
    if (a_.output.width % 8 == 0) {
      const int vectors = columns / 8;
      for (int i = threadIdx.x; i < tokens * vectors; i += kThreads) {
        const int token = i / vectors, vector = i % vectors;
        *reinterpret_cast<uint4*>(y + size_t(token) * a_.output.width + vector * 8) =
            *reinterpret_cast<const uint4*>(staged + token * stride + vector * 8);
      }
    } else {
      for (int i = threadIdx.x; i < tokens * columns; i += kThreads) {
        const int token = i / columns, column = i % columns;
        y[size_t(token) * a_.output.width + column] = staged[token * stride + column];
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
                                                     index * zero_words(kBits) * 4;
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
  uint8_t* shared_;
  int first_token_;
  int first_tile_;
};

template <typename T, int kBits, int kTokenTiles, int kWarpsAlongM, bool kWholeBlocks>
__global__ void __launch_bounds__(32 * kGemmWarpsAlongN * kWarpsAlongM)
    gemm_kernel(const __grid_constant__ GemmArguments a) {
  using Block = GemmBlock<T, kBits, kTokenTiles, kWarpsAlongM, kWholeBlocks>;
  extern __shared__ __align__(128) uint8_t shared[];
  let_next_kernel_start();
  const int row_blocks = ceil_div(a.tiles, kGemmTiles);
  int token_block, row_block;
  raster(blockIdx.x, a.token_blocks, row_blocks, &token_block, &row_block);
  const Block work(a, shared, token_block * Block::kTokens, row_block * kGemmTiles);
  const int begin = int(int64_t(a.blocks) * blockIdx.y / a.splits);
  const int end = int(int64_t(a.blocks) * (blockIdx.y + 1) / a.splits);

  float sums[kGemmTilesPerWarp][kTokenTiles][4] = {};
  if (begin < end) work.copy_weights(begin, 0);
  wait_for_previous_kernel();
  if (begin < end) work.copy_x(begin, 0);
  commit_copies();
  for (int block = begin; block < end; ++block) {
    const int stage = (block - begin) % kGemmStages;
    wait_copies<0>();
    __syncthreads();  // the stage is there for all, and the other one is no longer read
    if (block + 1 < end) {
      work.copy_weights(block + 1, stage ^ 1);
      work.copy_x(block + 1, stage ^ 1);
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
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      float sum = 0.0f;
      for (int s = 0; s < a.splits; ++s) {
        sum += __ldcg(&partials[(size_t(s) * kSums + i) * Block::kThreads + threadIdx.x]);
      }
      flat[i] = sum;
    }
  }
  work.store(sums);
}

}  // namespace awq_edge
