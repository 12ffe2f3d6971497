// The launches of attention for one activation dtype; included by the files that instantiate it.
#pragma once

#include "attention_append.cuh"
#include "attention_decode.cuh"
#include "attention_prefill.cuh"
#include "launch.h"
#include "status.h"

namespace awq_edge {

// Shared memory of a block on sm_86, sm_89 and sm_120, less more than any kernel has statically.
constexpr size_t kStaticBytes = 2048;
constexpr size_t kMaxSharedBytes = 99 * 1024 - kStaticBytes;

// Calls function(std::integral_constant<int, head_size>) for the head sizes that exist.
template <typename Function>
int with_head_size(int head_size, Function function) {
  switch (head_size) {
    case 32:
      return function(std::integral_constant<int, 32>{});
    case 64:
      return function(std::integral_constant<int, 64>{});
    case 96:
      return function(std::integral_constant<int, 96>{});
    case 128:
      return function(std::integral_constant<int, 128>{});
    default:
      return function(std::integral_constant<int, 256>{});
  }
}

// More than 48 KB of shared memory, static ones included, must be asked for.
template <typename Kernel>
int allow_shared_bytes(const char* what, Kernel kernel, size_t bytes) {
  if (bytes + kStaticBytes <= 48 * 1024) return AWQ_EDGE_OK;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(bytes));
  return launched(what);
}

template <typename T, int kHeadSize, bool kInt8, int kTiles>
int launch_decode_kernel(const awq_edge_attention& a, const DecodePlan& plan, float* partials,
                         uint32_t* counters, void* stream) {
  const auto kernel = decode_attention<T, kHeadSize, kInt8, kTiles>;
  constexpr size_t kBytes = DecodeShape<T, kHeadSize, kInt8, kTiles>::kSharedBytes;
  static_assert(kBytes <= kMaxSharedBytes, "runs on every target");
  const int status = allow_shared_bytes("decode attention", kernel, kBytes);
  if (status != AWQ_EDGE_OK) return status;
  const dim3 grid(plan.splits * plan.row_tiles, a.num_kv_heads, a.batch);
  return launch("decode attention", kernel, grid, dim3(kDecodeThreads), kBytes, stream, a, plan,
                partials, counters);
}

template <typename T>
int decode_blocks(int head_size, int tile_rows) {
  const int per_sm = with_head_size(head_size, [&](auto size) {
    return tile_rows == 8 ? DecodeShape<T, size(), false, 1>::kBlocksPerSm
                          : DecodeShape<T, size(), false, 2>::kBlocksPerSm;
  });
  return per_sm * device_limits().sm_count;
}

template <typename T>
int launch_decode(const awq_edge_attention& a, const DecodePlan& plan, float* partials,
                  uint32_t* counters, void* stream) {
  return with_head_size(a.head_size, [&](auto size) {
    constexpr int kHeadSize = size();
    const bool int8 = a.kv_dtype == AWQ_EDGE_INT8;
    if constexpr (kHeadSize == 64 || kHeadSize == 128) {
      if (plan.tile_rows == 16)
        return int8 ? launch_decode_kernel<T, kHeadSize, true, 2>(a, plan, partials, counters,
                                                                  stream)
                    : launch_decode_kernel<T, kHeadSize, false, 2>(a, plan, partials, counters,
                                                                   stream);
    }
    return int8
               ? launch_decode_kernel<T, kHeadSize, true, 1>(a, plan, partials, counters, stream)
               : launch_decode_kernel<T, kHeadSize, false, 1>(a, plan, partials, counters, stream);
  });
}

template <typename T>
int launch_append(const awq_edge_attention& a, void* stream) {
  const dim3 grid(ceil_div(a.tokens * a.num_kv_heads, kAppendWarps), 2, a.batch);
  return with_head_size(a.head_size, [&](auto size) {
    return launch("append to the KV cache", append_to_cache<T, size()>, grid,
                  dim3(32 * kAppendWarps), 0, stream, a);
  });
}

template <typename T, typename Shape>
int launch_prefill_kernel(const awq_edge_attention& a, void* stream) {
  const auto kernel = prefill_attention<T, Shape>;
  static_assert(Shape::shared_bytes(true) <= kMaxSharedBytes, "runs on every target");
  const size_t bytes = Shape::shared_bytes(a.kv_dtype == AWQ_EDGE_INT8);
  const int status = allow_shared_bytes("prefill attention", kernel, bytes);
  if (status != AWQ_EDGE_OK) return status;
  const int section_heads = prefill_section_heads(a.tokens, a.head_size, a.num_heads,
                                                  a.num_kv_heads, device_limits().l2_bytes);
  const dim3 grid(ceil_div(a.tokens, Shape::kRows) * a.num_heads, a.batch);
  return launch("prefill attention", kernel, grid, dim3(kPrefillThreads), bytes, stream, a,
                section_heads);
}

// Large tiles where two blocks of them fit an SM and there are enough for all SMs.
template <typename T>
int launch_prefill(const awq_edge_attention& a, void* stream) {
  return with_head_size(a.head_size, [&](auto size) {
    using Small = PrefillShape<size(), 1>;
    if constexpr (size() <= 128) {
      using Large = PrefillShape<size(), 2>;
      const DeviceLimits& limits = device_limits();
      const int64_t blocks =
          int64_t{ceil_div(a.tokens, Large::kRows)} * a.num_heads * a.batch;
      if (2 * Large::shared_bytes(false) <= static_cast<size_t>(limits.shared_bytes_per_block) &&
          blocks >= 2 * limits.sm_count)
        return launch_prefill_kernel<T, Large>(a, stream);
    }
    return launch_prefill_kernel<T, Small>(a, stream);
  });
}

}  // namespace awq_edge
