// The division of an unquantized linear's work, and where its tiles lie: pure arithmetic.
#pragma once

#include "awq_edge_kernels.h"
#include "host_device.h"

namespace awq_edge {

// ------------------------------------------------------------------ few rows of x
// A warp multiplies 16 rows of W. Of the eight warps of a thread block some lie along the rows and
// the others share the channels in turns of 128.
constexpr int kDenseWarps = 8;
constexpr int kDenseRows = 16;      // of W, of a warp
constexpr int kDenseChannels = 128; // of a turn

// 1 << shift warps of a block share the channels: as many as it takes for each multiprocessor to have
// sixteen warps at work, and none without a turn.
AWQ_EDGE_HD int dense_channel_shift(int n, int k, int sm_count) {
  const long long tiles = (n + kDenseRows - 1) / kDenseRows;
  int shift = 0;
  while ((1 << shift) < kDenseWarps && (tiles << shift) < 16LL * sm_count &&
         (kDenseChannels << shift) < k)
    ++shift;
  return shift;
}

// ------------------------------------------------------------------ many rows of x
// A thread block multiplies 128 rows of W by 64 of x, 64 channels at a time.
constexpr int kDenseGemmRows = 128;
constexpr int kDenseGemmTokens = 64;
constexpr int kDenseGemmChannels = 64;

// Bytes from the beginning of a tile to 8 channels of one of its rows. Odd rows have their halves
// exchanged, so that the eight lanes of one access, of two rows, meet all banks.
AWQ_EDGE_HD int dense_chunk_offset(int row, int chunk) {
  return row * kDenseGemmChannels * 2 + (chunk ^ (row & 1) << 2) * 16;
}

}  // namespace awq_edge
