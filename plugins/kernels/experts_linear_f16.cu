#include "experts_linear.cuh"

namespace awq_edge {
template int launch_expert_linear_as<__half>(const ExpertLinear&, void*);
}
