#include "attention_launch.cuh"

namespace awq_edge {

template int launch_append<__nv_bfloat16>(const awq_edge_attention&, void*);
template int launch_prefill<__nv_bfloat16>(const awq_edge_attention&, void*);

}  // namespace awq_edge
