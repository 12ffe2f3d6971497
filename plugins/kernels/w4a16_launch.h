// What the entry points of quantized weights share: checks, and launches of the kernels that are
// compiled in files of their own.
#pragma once

#include "w4a16_plan.h"

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

// A weight in tiles of 16 rows and blocks of 128 channels.
struct LinearSizes {
  int tiles, blocks;
  int rows;  // of the packing: whole tiles where gate and up share them
  int width;
  Epilogue epilogue;
  bool paired;
};

inline LinearSizes sizes_of(const awq_edge_w4a16_weight& w) {
  LinearSizes s{};
  s.epilogue = epilogue_of(w.epilogue);
  s.paired = s.epilogue.paired;
  s.width = s.paired ? w.out_features / 2 : w.out_features;
  s.tiles = s.paired ? ceil_div(s.width, 8) : ceil_div(w.out_features, kTileRows);
  s.blocks = ceil_div(w.in_features, kBlockChannels);
  s.rows = s.paired ? s.tiles * kTileRows : w.out_features;
  return s;
}

// INVALID_ARGUMENT in words unless the kernels take such a weight. pointers: whether those are checked.
int check_weight(const awq_edge_w4a16_weight* weight, bool pointers);

struct DecodeArguments;
struct GemmArguments;

int launch_decode(const DecodeArguments& arguments, const DecodePlan& plan, int dtype, int bits,
                  void* stream);
int launch_gemm(const GemmArguments& arguments, const GemmPlan& plan, int dtype, int bits,
                void* stream);
constexpr size_t kCublasLtWorkspace = size_t(32) << 20;

// Through cuBLASLt, if it can be loaded. weights: [n, k], y: [m, n], in the activation dtype.
int launch_cublaslt(const void* weights, const void* x, void* y, int m, int n, int k, int dtype,
                    void* workspace, size_t workspace_bytes, void* stream);
bool has_cublaslt();

}  // namespace awq_edge
