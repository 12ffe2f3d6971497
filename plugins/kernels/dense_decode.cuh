// y = x W^T with weights of 16 bits, for one to sixteen rows of x: as the quantized decode kernel, W is
// operand A and each byte of it is read once, straight into registers.
#pragma once

#include "async_copy.cuh"
#include "dense.h"
#include "dense_plan.h"
#include "element.cuh"

namespace awq_edge {

// 16 bytes that nobody reads again.
__device__ __forceinline__ uint4 load_once(const void* address) {
  return __ldcs(static_cast<const uint4*>(address));
}

// A lane's part of a turn of 128 channels of 16 rows: 8 channels of 32 of rows g and g + 8, four times.
// Zero behind the last channel.
template <typename T>
struct DenseFragments {
  static constexpr int kParts = kDenseChannels / 32;
  uint4 low[kParts], high[kParts];

  __device__ __forceinline__ void load(const T* row_low, const T* row_high, int channel, int k) {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const bool is_there = channel + 32 * part < k;
      low[part] = is_there ? load_once(row_low + channel + 32 * part) : make_uint4(0, 0, 0, 0);
      high[part] = is_there ? load_once(row_high + channel + 32 * part) : make_uint4(0, 0, 0, 0);
    }
  }

  // sums += these times 8 rows of x; `x`: the lane's row.
  __device__ __forceinline__ void multiply(float (&sums)[4], const T* x, int channel,
                                           int k) const {
    uint4 b[kParts];
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      b[part] = channel + 32 * part < k
                    ? *reinterpret_cast<const uint4*>(x + channel + 32 * part)
                    : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      // The order of channels within a step is free.
      const uint32_t first[4] = {low[part].x, high[part].x, low[part].y, high[part].y};
      const uint32_t second[4] = {low[part].z, high[part].z, low[part].w, high[part].w};
      mma_16816<T>(sums, first, b[part].x, b[part].y);
      mma_16816<T>(sums, second, b[part].z, b[part].w);
    }
  }
};

// Grid: the row tiles of the warps that lie along W.
template <typename T, int kTokenTiles>
__global__ void __launch_bounds__(32 * kDenseWarps, 2)
    dense_decode_kernel(const DenseArguments a, int channel_shift) {
  __shared__ float all[kDenseWarps][kTokenTiles][4][32];
  let_next_kernel_start();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4;
  const int channel_warps = 1 << channel_shift, row_warps = kDenseWarps >> channel_shift;
  const int tile = blockIdx.x * row_warps + (warp >> channel_shift);
  // Rows that are not there repeat the last one; nobody stores their sums. Tokens likewise.
  const T* weight = static_cast<const T*>(a.weight);
  const T* row_low = weight + size_t(min(tile * kDenseRows + g, a.n - 1)) * a.k;
  const T* row_high = weight + size_t(min(tile * kDenseRows + g + 8, a.n - 1)) * a.k;
  int channel = (warp & (channel_warps - 1)) * kDenseChannels + 8 * (lane % 4);
  const int step = channel_warps * kDenseChannels;
  DenseFragments<T> now;
  now.load(row_low, row_high, channel, a.k);  // no kernel writes weights
  wait_for_previous_kernel();
  const T* x[kTokenTiles];
#pragma unroll
  for (int i = 0; i < kTokenTiles; ++i)
    x[i] = static_cast<const T*>(a.x) + size_t(min(8 * i + g, a.m - 1)) * a.k;

  float sums[kTokenTiles][4] = {};
  for (; channel - 8 * (lane % 4) < a.k; channel += step) {
    DenseFragments<T> next;
    next.load(row_low, row_high, channel + step, a.k);
#pragma unroll
    for (int i = 0; i < kTokenTiles; ++i) now.multiply(sums[i], x[i], channel, a.k);
    now = next;
  }
#pragma unroll
  for (int i = 0; i < kTokenTiles; ++i)
#pragma unroll
    for (int c = 0; c < 4; ++c) all[warp][i][c][lane] = sums[i][c];
  __syncthreads();
  const int columns = row_warps * kDenseRows, first_column = blockIdx.x * columns;
  for (int i = threadIdx.x; i < a.m * columns; i += blockDim.x) {
    const int token = i / columns, in_block = i % columns, row = in_block % kDenseRows;
    const int column = first_column + in_block;
    if (column >= a.n) continue;
    // Sum (row, token) of a tile lies in register 2 (row / 8) + token % 2 of lane 4 (row % 8) + ...
    const int of_lane = 4 * (row % 8) + token % 8 / 2, of_register = 2 * (row / 8) + token % 2;
    const int first_warp = (in_block / kDenseRows) << channel_shift;
    float sum = a.bias == nullptr ? 0.0f : to_float(static_cast<const T*>(a.bias)[column]);
    for (int w = 0; w < channel_warps; ++w)
      sum += all[first_warp + w][token / 8][of_register][of_lane];
    static_cast<T*>(a.y)[size_t(token) * a.n + column] = from_float<T>(sum);
  }
}

}  // namespace awq_edge
