// The weight as numbers, and the epilogue for sums that another library made of them.
#include "w4a16_expand.h"

#include "async_copy.cuh"
#include "launch.h"
#include "w4a16_dequantize.cuh"
#include "w4a16_epilogue.cuh"

namespace awq_edge {
namespace {

// w [rows, k]: one warp expands one block of one tile; rows in the order of the packing.
template <typename T, int kBits>
__global__ void __launch_bounds__(128) expand_kernel(const ExpandArguments a) {
  let_next_kernel_start();
  __shared__ T staged[4][kTileRows][kBlockChannels + 8];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t index = int64_t(blockIdx.x) * 4 + warp;
  const int tile = int(index / a.blocks), block = int(index % a.blocks);
  if (tile >= a.tiles) return;
  const uint32_t* codes = a.qweight + size_t(index) * block_words(kBits);
  uint32_t words[2 * kBits];
#pragma unroll
  for (int w = 0; w < 2 * kBits; ++w) words[w] = __ldg(&codes[word_index(kBits, lane, w)]);
  const int groups = kBlockChannels / a.group_size;
  T(&rows)[kTileRows][kBlockChannels + 8] = staged[warp];
#pragma unroll
  for (int part = 0; part < 4; ++part) {
    const int64_t group = index * groups + 32 * part / a.group_size;
    const uint8_t* zeros =
        a.zeros == nullptr ? nullptr : a.zeros + group * zero_words(kBits) * 4;
    const GroupParameters p = group_parameters<kBits>(a.scales + group * 32, zeros, lane / 4);
#pragma unroll
    for (int s0 = 0; s0 < 2; ++s0) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int h = part / 2, s = 2 * (part % 2) + s0;
          const int code = int(extract_code(kBits, words, h, s, r, e));
          const int zero = int(r & 1 ? p.zero1 : p.zero0);
          rows[fragment_row(lane, r)][fragment_channel(lane, h, s, r, e)] =
              from_float<T>(float(code - zero) * (r & 1 ? p.scale1 : p.scale0));
        }
      }
    }
  }
  wait_for_previous_kernel();
  __syncwarp();
  for (int i = lane; i < kTileRows * 16; i += 32) {
    const int row = tile * kTileRows + i / 16, channel = block * kBlockChannels + i % 16 * 8;
    if (row < a.rows && channel < a.k) {
      *reinterpret_cast<uint4*>(static_cast<T*>(a.w) + size_t(row) * a.k + channel) =
          *reinterpret_cast<const uint4*>(&rows[i / 16][i % 16 * 8]);
    }
  }
}

// y from sums [m, rows] in the order of the packing.
template <typename T>
__global__ void finish_kernel(const T* sums, const Output output, int m, int rows) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= int64_t(m) * output.width) return;
  const int token = int(i / output.width), column = int(i % output.width);
  const T* row = sums + size_t(token) * rows;
  const int first = output.epilogue.paired ? column / 8 * 16 + column % 8 : column;
  const float up = output.epilogue.paired ? to_float(row[first + 8]) : 0.0f;
  static_cast<T*>(output.y)[i] = finish<T>(output, column, to_float(row[first]), up);
}

template <typename T>
int expand_as(const ExpandArguments& a, int bits, void* stream) {
  auto* kernel = bits == 3   ? expand_kernel<T, 3>
                 : bits == 4 ? expand_kernel<T, 4>
                             : expand_kernel<T, 8>;
  const int64_t warps = int64_t(a.tiles) * a.blocks;
  return launch("w4a16 dequantize", kernel, dim3(unsigned((warps + 3) / 4)), dim3(128), 0, stream,
                a);
}

}  // namespace

int launch_expand(const ExpandArguments& arguments, int dtype, int bits, void* stream) {
  return dtype == AWQ_EDGE_FLOAT16 ? expand_as<__half>(arguments, bits, stream)
                                   : expand_as<__nv_bfloat16>(arguments, bits, stream);
}

int launch_finish(const void* sums, const Output& output, int m, int rows, int dtype,
                  void* stream) {
  const int64_t outputs = int64_t(m) * output.width;
  const dim3 grid(unsigned((outputs + 255) / 256));
  if (dtype == AWQ_EDGE_FLOAT16) {
    return launch("w4a16 epilogue", finish_kernel<__half>, grid, dim3(256), 0, stream,
                  static_cast<const __half*>(sums), output, m, rows);
  }
  return launch("w4a16 epilogue", finish_kernel<__nv_bfloat16>, grid, dim3(256), 0, stream,
                static_cast<const __nv_bfloat16*>(sums), output, m, rows);
}

}  // namespace awq_edge
