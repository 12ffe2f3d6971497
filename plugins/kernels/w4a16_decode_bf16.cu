#include "w4a16_decode_launch.cuh"

namespace awq_edge {
template int launch_decode_as<__nv_bfloat16>(const DecodeArguments&, const DecodePlan&, int, void*);
}
