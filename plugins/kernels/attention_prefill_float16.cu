#include "attention_launch.cuh"

namespace awq_edge {

template int launch_append<__half>(const awq_edge_attention&, void*);
template int launch_prefill<__half>(const awq_edge_attention&, void*);

}  // namespace awq_edge
