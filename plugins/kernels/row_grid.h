// The launch shape of operations without a sum: x over a row's vectors, y over the rows.
#pragma once

#include <cuda_runtime.h>

namespace awq_edge {

constexpr int kRowThreads = 256;
// CUDA's limit of a grid's y; a block takes every gridDim.y-th row.
constexpr int kMaxGridRows = 65535;

struct RowGrid {
  dim3 grid, block;

  RowGrid(int rows, int vectors) {
    const int warps = (vectors + 31) / 32;
    block = dim3(warps * 32 < kRowThreads ? warps * 32 : kRowThreads);
    grid = dim3((vectors + block.x - 1) / block.x, rows < kMaxGridRows ? rows : kMaxGridRows);
  }
};

}  // namespace awq_edge
