// Which row of x and of y a token of a quantized linear means: its own, or that of the tokens that an
// expert was given.
#pragma once

#include <cuda_runtime.h>

namespace awq_edge {

struct SameRows {
  __device__ __forceinline__ int of_x(int token) const { return token; }
  __device__ __forceinline__ int of_y(int token) const { return token; }
};

// Up to AWQ_EDGE_DECODE_ROWS, or a block of the GEMM, of one expert's tokens; count 0: nothing.
struct alignas(16) ExpertTask {
  int expert;
  int first;  // place in the order by experts
  int count;
  int unused;
};

// order: of each place, the pair of a token and one of its experts, token * top_k + slot. x is by
// place, or by token where top_k is not 0; y by pair where `by_pair`, else by place.
struct ExpertRows {
  const int* order;
  int first;
  int top_k;
  bool by_pair;

  __device__ __forceinline__ int of_x(int token) const {
    return top_k == 0 ? first + token : order[first + token] / top_k;
  }
  __device__ __forceinline__ int of_y(int token) const {
    return by_pair ? order[first + token] : first + token;
  }
};

}  // namespace awq_edge
