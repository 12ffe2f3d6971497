// The arguments of an unquantized linear, as its kernels take them.
#pragma once

namespace awq_edge {

struct DenseArguments {
  const void* weight;  // [n, k]
  const void* bias;    // [n]; may be null
  const void* x;       // [m, k]
  void* y;             // [m, n]
  int m, n, k;
};

}  // namespace awq_edge
