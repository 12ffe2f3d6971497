#include "attention_launch.cuh"

namespace awq_edge {

template int decode_blocks<__half>(int head_size, int tile_rows);
template int launch_decode<__half>(const awq_edge_attention&, const DecodePlan&,
                                           float*, uint32_t*, void*);

}  // namespace awq_edge
