#include "experts_linear.cuh"

namespace awq_edge {
template int launch_expert_linear_as<__nv_bfloat16>(const ExpertLinear&, void*);
}
