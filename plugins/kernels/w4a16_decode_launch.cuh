// Instances of the decode kernel for one activation dtype.
#pragma once

#include "launch.h"
#include "w4a16_decode.cuh"
#include "w4a16_launch.h"

namespace awq_edge {

template <typename T, int kBits, int kTiles, int kTokenTiles>
int launch_decode_instance(const DecodeArguments& arguments, const DecodePlan& plan, void* stream) {
  auto* kernel = arguments.group_size == kBlockChannels
                     ? decode_kernel<T, kBits, kTiles, kTokenTiles, true>
                     : decode_kernel<T, kBits, kTiles, kTokenTiles, false>;
  const size_t bytes = decode_shared_bytes(kBits, plan);
  const int most = device_limits().shared_bytes_per_block;
  if (bytes > size_t(most)) {
    return fail(AWQ_EDGE_UNSUPPORTED,
                "w4a16 decode: %d warps with %d tiles of %d bits need %zu bytes of shared memory; "
                "this device has %d",
                plan.warps, kTiles, kBits, bytes, most);
  }
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  return launch("w4a16 decode", kernel, dim3(plan.tile_groups, plan.splits), dim3(32 * plan.warps),
                bytes, stream, arguments);
}

template <typename T, int kBits>
int launch_decode_bits(const DecodeArguments& arguments, const DecodePlan& plan, void* stream) {
  if (plan.token_tiles == 1) {
    return plan.tiles == 1 ? launch_decode_instance<T, kBits, 1, 1>(arguments, plan, stream)
                           : launch_decode_instance<T, kBits, 2, 1>(arguments, plan, stream);
  }
  return plan.tiles == 1 ? launch_decode_instance<T, kBits, 1, 2>(arguments, plan, stream)
                         : launch_decode_instance<T, kBits, 2, 2>(arguments, plan, stream);
}

template <typename T>
int launch_decode_as(const DecodeArguments& arguments, const DecodePlan& plan, int bits,
                     void* stream) {
  if (bits == 3) return launch_decode_bits<T, 3>(arguments, plan, stream);
  if (bits == 4) return launch_decode_bits<T, 4>(arguments, plan, stream);
  return launch_decode_bits<T, 8>(arguments, plan, stream);
}

}  // namespace awq_edge
