// The epilogue of a quantized linear: its sums on their way to memory.
#pragma once

#include "activation.cuh"
#include "element.cuh"
#include "w4a16_launch.h"
#include "w4a16_layout.h"

namespace awq_edge {

// The outputs of a linear. width: columns of y, n or n / 2.
struct Output {
  void* y;
  const void* bias;  // may be null
  int n;
  int width;
  Epilogue epilogue;
};

// Outputs of one tile: 16, or 8 where gate and up share it.
__device__ __forceinline__ int tile_outputs(const Output& output) {
  return output.epilogue.paired ? 8 : 16;
}

template <typename T>
__device__ __forceinline__ float bias_at(const Output& output, int i) {
  return output.bias == nullptr ? 0.0f : to_float(static_cast<const T*>(output.bias)[i]);
}

// Output column `column` from the tile's sums: `sum` of row `column`, or with a gate that in row i
// and the up value in row i + 8. column < width.
template <typename T>
__device__ __forceinline__ T finish(const Output& output, int column, float sum, float up) {
  float value = sum + bias_at<T>(output, column);
  if (output.epilogue.activation >= 0) value = activate(output.epilogue.activation, value);
  if (output.epilogue.paired) value *= up + bias_at<T>(output, output.width + column);
  return from_float<T>(value);
}

}  // namespace awq_edge
