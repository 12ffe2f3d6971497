// Activation functions in float32, for the kernels that apply them: after a linear and as a step of
// their own.
#pragma once

#include <cuda_runtime.h>

#include "awq_edge_kernels.h"

namespace awq_edge {

// Each without cancellation, so that the result is right to float32 where it is close to zero; an
// exponential that overflows gives the zero it should.
__device__ __forceinline__ float activate(int activation, float x) {
  switch (activation) {
    case AWQ_EDGE_ACTIVATION_SILU:
      return x / (1.0f + expf(-x));
    case AWQ_EDGE_ACTIVATION_GELU:  // x times the normal distribution's integral up to x
      return 0.5f * x * erfcf(-0.70710678118654752f * x);
    case AWQ_EDGE_ACTIVATION_GELU_TANH: {  // (1 + tanh(u)) / 2 is 1 / (1 + e^-2u)
      const float twice = 1.5957691216057308f * x * fmaf(0.044715f * x, x, 1.0f);
      return x / (1.0f + expf(-twice));
    }
    default: {  // NaN stays
      const float positive = x < 0.0f ? 0.0f : x;
      return activation == AWQ_EDGE_ACTIVATION_RELU ? positive : positive * positive;
    }
  }
}

}  // namespace awq_edge
