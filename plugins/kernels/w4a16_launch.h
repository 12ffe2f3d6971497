// Launches of the kernels that are compiled in files of their own.
#pragma once

#include "w4a16_plan.h"

namespace awq_edge {

struct DecodeArguments;
struct GemmArguments;

int launch_decode(const DecodeArguments& arguments, const DecodePlan& plan, int dtype, int bits,
                  void* stream);
int launch_gemm(const GemmArguments& arguments, const GemmPlan& plan, int dtype, int bits,
                void* stream);
// Through cuBLASLt, if it can be loaded. weights: [n, k], y: [m, n], in the activation dtype.
int launch_cublaslt(const void* weights, const void* x, void* y, int m, int n, int k, int dtype,
                    void* workspace, size_t workspace_bytes, void* stream);
bool has_cublaslt();

}  // namespace awq_edge
