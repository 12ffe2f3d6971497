// The kernels of cached attention, by activation dtype: each is instantiated in a file of its own,
// so that they compile side by side.
#pragma once

#include "attention_partition.h"
#include "awq_edge_kernels.h"

namespace awq_edge {

// Blocks of the decode kernel that the device holds at a time.
template <typename T>
int decode_blocks(int head_size, int tile_rows);

template <typename T>
int launch_decode(const awq_edge_attention& a, const DecodePlan& plan, float* partials,
                  uint32_t* counters, void* stream);

// Rotary embedding of k, and append of k and v to the cache.
template <typename T>
int launch_append(const awq_edge_attention& a, void* stream);

template <typename T>
int launch_prefill(const awq_edge_attention& a, void* stream);

}  // namespace awq_edge
