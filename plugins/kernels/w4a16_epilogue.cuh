// The epilogue of a quantized linear: its sums on their way to memory.
#pragma once

#include "activation.cuh"
#include "element.cuh"
#include "w4a16_layout.h"

namespace awq_edge {

// The activation of an awq_edge_epilogue, and whether it is a gate's, whose tiles hold the factors
// too.
struct Epilogue {
  int activation;  // awq_edge_activation_kind; -1: none
  bool paired;
};

inline Epilogue epilogue_of(int epilogue) {
  switch (epilogue) {
    case AWQ_EDGE_EPILOGUE_SILU_MUL:
      return {AWQ_EDGE_ACTIVATION_SILU, true};
    case AWQ_EDGE_EPILOGUE_GELU_MUL:
      return {AWQ_EDGE_ACTIVATION_GELU, true};
    case AWQ_EDGE_EPILOGUE_GELU_TANH_MUL:
      return {AWQ_EDGE_ACTIVATION_GELU_TANH, true};
    case AWQ_EDGE_EPILOGUE_RELU:
      return {AWQ_EDGE_ACTIVATION_RELU, false};
    case AWQ_EDGE_EPILOGUE_GELU:
      return {AWQ_EDGE_ACTIVATION_GELU, false};
    case AWQ_EDGE_EPILOGUE_RELU_SQUARED:
      return {AWQ_EDGE_ACTIVATION_RELU_SQUARED, false};
    default:
      return {-1, false};
  }
}

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
