// y = x W^T with weights of 16 bits, for many rows of x, where no library does it: 128 rows of W by 64
// of x a thread block, both in two stages of shared memory.
#pragma once

#include "async_copy.cuh"
#include "dense.h"
#include "dense_plan.h"
#include "element.cuh"

namespace awq_edge {

constexpr int kDenseGemmThreads = 256;  // four warps along W, two along x
constexpr int kDenseRowTiles = 2;       // of 16 rows, of a warp
constexpr int kDenseTokenTiles = 4;     // of 8 tokens
constexpr int kDenseStageBytes = (kDenseGemmRows + kDenseGemmTokens) * kDenseGemmChannels * 2;
constexpr int kDenseSharedBytes = 2 * kDenseStageBytes;
constexpr int kDenseStagedRow = kDenseGemmRows + 8;  // of y
static_assert(kDenseGemmTokens * kDenseStagedRow * 2 <= kDenseSharedBytes, "y is staged there");
static_assert(kDenseSharedBytes <= 48 * 1024, "no more than a kernel has without asking");

// Start copying 64 channels of kRows rows, of which the last is repeated behind `rows`.
template <int kRows, typename T>
__device__ __forceinline__ void copy_dense_tile(uint8_t* tile, const T* source, int first_row,
                                                int rows, int channel, int k) {
  constexpr int kChunks = kDenseGemmChannels / 8;
#pragma unroll
  for (int i = 0; i < kRows * kChunks / kDenseGemmThreads; ++i) {
    const int copy = threadIdx.x + i * kDenseGemmThreads, row = copy / kChunks;
    const int at = channel + copy % kChunks * 8;
    const T* from = source + size_t(min(first_row + row, rows - 1)) * k;
    copy_async_16(tile + dense_chunk_offset(row, copy % kChunks), at < k ? from + at : from,
                  at < k ? 16 : 0);
  }
}

template <typename T>
__global__ void __launch_bounds__(kDenseGemmThreads) dense_gemm_kernel(const DenseArguments a) {
  __shared__ __align__(128) uint8_t shared[kDenseSharedBytes];
  let_next_kernel_start();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int first_row = blockIdx.x * kDenseGemmRows, first_token = blockIdx.y * kDenseGemmTokens;
  const int warp_row = warp % 4 * 16 * kDenseRowTiles;
  const int warp_token = warp / 4 * 8 * kDenseTokenTiles;
  const auto copy_weight = [&](int channel, int stage) {
    copy_dense_tile<kDenseGemmRows>(shared + stage * kDenseStageBytes,
                                    static_cast<const T*>(a.weight), first_row, a.n, channel, a.k);
  };
  const auto copy_x = [&](int channel, int stage) {
    copy_dense_tile<kDenseGemmTokens>(
        shared + stage * kDenseStageBytes + kDenseGemmRows * kDenseGemmChannels * 2,
        static_cast<const T*>(a.x), first_token, a.m, channel, a.k);
  };
  copy_weight(0, 0);
  wait_for_previous_kernel();
  copy_x(0, 0);
  commit_copies();
  float sums[kDenseRowTiles][kDenseTokenTiles][4] = {};
  int stage = 0;
  for (int channel = 0; channel < a.k; channel += kDenseGemmChannels, stage ^= 1) {
    wait_copies<0>();
    __syncthreads();  // the stage is there for all, and the other one is no longer read
    if (channel + kDenseGemmChannels < a.k) {
      copy_weight(channel + kDenseGemmChannels, stage ^ 1);
      copy_x(channel + kDenseGemmChannels, stage ^ 1);
    }
    commit_copies();
    const uint8_t* weight = shared + stage * kDenseStageBytes;
    const uint8_t* x = weight + kDenseGemmRows * kDenseGemmChannels * 2;
#pragma unroll
    for (int part = 0; part < kDenseGemmChannels / 32; ++part) {
      const auto load = [&](const uint8_t* tile, int row) {
        return *reinterpret_cast<const uint4*>(tile + dense_chunk_offset(row, 4 * part + t));
      };
      uint4 low[kDenseRowTiles], high[kDenseRowTiles], b[kDenseTokenTiles];
#pragma unroll
      for (int tile = 0; tile < kDenseRowTiles; ++tile) {
        low[tile] = load(weight, warp_row + 16 * tile + g);
        high[tile] = load(weight, warp_row + 16 * tile + g + 8);
      }
#pragma unroll
      for (int i = 0; i < kDenseTokenTiles; ++i) b[i] = load(x, warp_token + 8 * i + g);
      // The order of channels within a step is free.
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int tile = 0; tile < kDenseRowTiles; ++tile) {
          const uint32_t fragment[4] = {half ? low[tile].z : low[tile].x,
                                        half ? high[tile].z : high[tile].x,
                                        half ? low[tile].w : low[tile].y,
                                        half ? high[tile].w : high[tile].y};
#pragma unroll
          for (int i = 0; i < kDenseTokenTiles; ++i)
            mma_16816<T>(sums[tile][i], fragment, half ? b[i].z : b[i].x, half ? b[i].w : b[i].y);
        }
    }
  }
  __syncthreads();
  // Through shared memory, so that a row of y is stored 16 bytes at a time.
  T* staged = reinterpret_cast<T*>(shared);  // [tokens, kDenseStagedRow]
#pragma unroll
  for (int tile = 0; tile < kDenseRowTiles; ++tile)
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int row = warp_row + 16 * tile + g + 8 * (c / 2);
      const float bias = a.bias == nullptr || first_row + row >= a.n
                             ? 0.0f
                             : to_float(static_cast<const T*>(a.bias)[first_row + row]);
#pragma unroll
      for (int i = 0; i < kDenseTokenTiles; ++i)
        staged[(warp_token + 8 * i + 2 * t + c % 2) * kDenseStagedRow + row] =
            from_float<T>(sums[tile][i][c] + bias);
    }
  __syncthreads();
  const int columns = min(kDenseGemmRows, a.n - first_row);
  const int tokens = min(kDenseGemmTokens, a.m - first_token);
  T* y = static_cast<T*>(a.y) + size_t(first_token) * a.n + first_row;
  const int width = a.n % 8 == 0 ? 8 : 1, stores = columns / width;
  for (int i = threadIdx.x; i < tokens * stores; i += kDenseGemmThreads) {
    const int token = i / stores, column = i % stores * width;
    const T* from = staged + token * kDenseStagedRow + column;
    T* to = y + size_t(token) * a.n + column;
    if (width == 8)
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    else
      *to = *from;
  }
}

}  // namespace awq_edge
