#include "w4a16_gemm_launch.cuh"

namespace awq_edge {
template int launch_gemm_as<__nv_bfloat16>(const GemmArguments&, const GemmPlan&, int, void*);
}
