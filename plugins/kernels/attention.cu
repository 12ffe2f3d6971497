// awq_edge_cached_attention: validation, and the choice between decode and prefill.
#include "attention.h"

#include <cmath>

#include "element.cuh"
#include "status.h"

namespace awq_edge {
namespace {

constexpr int kMaxCounters = AWQ_EDGE_COUNTER_BYTES / sizeof(uint32_t);
constexpr int kMaxGrid = 65535;

bool is_decode(const awq_edge_attention& a, int tokens) {
  return static_cast<int64_t>(tokens) * (a.num_heads / a.num_kv_heads) <= kMaxDecodeRows;
}

DecodePlan plan_of(const awq_edge_attention& a, int tokens) {
  const int rows = tokens * (a.num_heads / a.num_kv_heads);
  const int tile_rows = decode_tile_rows(rows, a.head_size);
  const int blocks = a.dtype == AWQ_EDGE_FLOAT16
                         ? decode_blocks<__half>(a.head_size, tile_rows)
                         : decode_blocks<__nv_bfloat16>(a.head_size, tile_rows);
  return decode_plan(a.batch, a.num_kv_heads, rows, a.head_size, a.context, blocks, kMaxCounters);
}

int check_shape(const awq_edge_attention& a) {
  AWQ_EDGE_REQUIRE(a.dtype == AWQ_EDGE_FLOAT16 || a.dtype == AWQ_EDGE_BFLOAT16,
                   "cached_attention: dtype is %d, not float16 (0) or bfloat16 (1)", a.dtype);
  AWQ_EDGE_REQUIRE(a.kv_dtype == a.dtype || a.kv_dtype == AWQ_EDGE_INT8,
                   "cached_attention: kv_dtype is %d; it must be dtype (%d) or int8 (2)",
                   a.kv_dtype, a.dtype);
  AWQ_EDGE_REQUIRE(a.batch >= 1 && a.batch <= kMaxGrid,
                   "cached_attention: batch is %d, not within 1..%d", a.batch, kMaxGrid);
  AWQ_EDGE_REQUIRE(a.tokens >= 1 && a.tokens <= kMaxPositions,
                   "cached_attention: tokens is %d, not within 1..%d", a.tokens, kMaxPositions);
  AWQ_EDGE_REQUIRE(a.num_kv_heads >= 1 && a.num_heads >= 1 && a.num_heads <= kMaxGrid &&
                       a.num_heads % a.num_kv_heads == 0,
                   "cached_attention: num_heads %d is not a multiple of num_kv_heads %d within "
                   "1..%d",
                   a.num_heads, a.num_kv_heads, kMaxGrid);
  AWQ_EDGE_REQUIRE(a.head_size == 32 || a.head_size == 64 || a.head_size == 96 ||
                       a.head_size == 128 || a.head_size == 256,
                   "cached_attention: head_size is %d; kernels exist for 32, 64, 96, 128 and 256",
                   a.head_size);
  AWQ_EDGE_REQUIRE(a.rotary_size >= 0 && a.rotary_size <= a.head_size && a.rotary_size % 2 == 0,
                   "cached_attention: rotary_size is %d, not an even number within 0..%d",
                   a.rotary_size, a.head_size);
  AWQ_EDGE_REQUIRE(a.rotary_tables >= 0 && a.position_axes >= 0,
                   "cached_attention: rotary_tables is %d and position_axes %d; neither may be "
                   "negative",
                   a.rotary_tables, a.position_axes);
  AWQ_EDGE_REQUIRE(a.context >= 1 && a.context <= kMaxPositions,
                   "cached_attention: context is %d, not within 1..%d", a.context, kMaxPositions);
  AWQ_EDGE_REQUIRE(a.window >= 0, "cached_attention: window is %d, must not be negative",
                   a.window);
  AWQ_EDGE_REQUIRE(std::isfinite(a.scale) && a.scale > 0.0f && std::isfinite(a.soft_cap) &&
                       a.soft_cap >= 0.0f,
                   "cached_attention: scale is %g and soft_cap %g; the scale must be positive, the "
                   "cap positive or 0",
                   a.scale, a.soft_cap);
  AWQ_EDGE_REQUIRE(static_cast<int64_t>(a.tokens) * a.num_heads <= INT32_MAX,
                   "cached_attention: %d tokens of %d heads are too many for one call", a.tokens,
                   a.num_heads);
  return AWQ_EDGE_OK;
}

int check_tensor(const char* name, const void* pointer) {
  AWQ_EDGE_REQUIRE(pointer != nullptr, "cached_attention: %s is null", name);
  AWQ_EDGE_REQUIRE(is_aligned(pointer), "cached_attention: %s (%p) is not aligned to 16 bytes",
                   name, pointer);
  return AWQ_EDGE_OK;
}

int check_stride(const char* name, int64_t stride, int heads, int head_size) {
  AWQ_EDGE_REQUIRE(stride % 8 == 0 && stride >= static_cast<int64_t>(heads) * head_size,
                   "cached_attention: %s is %lld; it must be a multiple of 8 and at least %d heads "
                   "of %d channels",
                   name, static_cast<long long>(stride), heads, head_size);
  return AWQ_EDGE_OK;
}

int check_tensors(const awq_edge_attention& a) {
  const bool int8 = a.kv_dtype == AWQ_EDGE_INT8;
  const struct {
    const char* name;
    const void* pointer;
    bool needed;
  } tensors[] = {
      {"q", a.q, true},
      {"k", a.k, true},
      {"v", a.v, true},
      {"past_length", a.past_length, true},
      {"cosine", a.cosine, a.rotary_size > 0},
      {"sine", a.sine, a.rotary_size > 0},
      {"q_norm", a.q_norm, a.q_norm != nullptr},
      {"k_norm", a.k_norm, a.k_norm != nullptr},
      {"sinks", a.sinks, a.sinks != nullptr},
      {"key_cache", a.key_cache, true},
      {"value_cache", a.value_cache, true},
      {"key_scales", a.key_scales, int8},
      {"value_scales", a.value_scales, int8},
      {"y", a.y, true},
  };
  for (const auto& tensor : tensors) {
    if (!tensor.needed) continue;
    const int status = check_tensor(tensor.name, tensor.pointer);
    if (status != AWQ_EDGE_OK) return status;
  }
  for (const void* pointer : {static_cast<const void*>(a.row_begin),
                              static_cast<const void*>(a.rotary_table),
                              static_cast<const void*>(a.positions),
                              static_cast<const void*>(a.pair_axes)})
    AWQ_EDGE_REQUIRE(is_aligned(pointer, 8),
                     "cached_attention: row_begin, rotary_table, positions and pair_axes must be "
                     "aligned to 8 bytes; one is %p",
                     pointer);
  int status = check_stride("q_stride", a.q_stride, a.num_heads, a.head_size);
  if (status == AWQ_EDGE_OK)
    status = check_stride("k_stride", a.k_stride, a.num_kv_heads, a.head_size);
  if (status == AWQ_EDGE_OK)
    status = check_stride("v_stride", a.v_stride, a.num_kv_heads, a.head_size);
  return status;
}

size_t workspace_bytes_of(const awq_edge_attention& a) {
  size_t most = 0;
  for (int tokens = 1; tokens <= a.tokens && is_decode(a, tokens); ++tokens) {
    const size_t floats =
        decode_workspace_floats(a.batch, a.num_kv_heads, plan_of(a, tokens), a.head_size);
    most = floats > most ? floats : most;
  }
  return most == 0 ? 0 : AWQ_EDGE_COUNTER_BYTES + most * sizeof(float);
}

template <typename T>
int run(const awq_edge_attention& a, void* workspace, size_t workspace_bytes, void* stream) {
  if (!is_decode(a, a.tokens)) {
    const int status = launch_append<T>(a, stream);
    return status != AWQ_EDGE_OK ? status : launch_prefill<T>(a, stream);
  }
  const DecodePlan plan = plan_of(a, a.tokens);
  const size_t floats = decode_workspace_floats(a.batch, a.num_kv_heads, plan, a.head_size);
  const size_t needed = floats == 0 ? 0 : AWQ_EDGE_COUNTER_BYTES + floats * sizeof(float);
  if (workspace_bytes < needed)
    return fail(AWQ_EDGE_WORKSPACE,
                "cached_attention: the workspace has %zu bytes, %zu are needed; ask "
                "awq_edge_cached_attention_workspace",
                workspace_bytes, needed);
  if (needed != 0) {
    const int status = check_tensor("workspace", workspace);
    if (status != AWQ_EDGE_OK) return status;
  }
  char* partials = static_cast<char*>(workspace) + (needed == 0 ? 0 : AWQ_EDGE_COUNTER_BYTES);
  return launch_decode<T>(a, plan, reinterpret_cast<float*>(partials),
                          static_cast<uint32_t*>(workspace), stream);
}

}  // namespace
}  // namespace awq_edge

extern "C" {

int awq_edge_cached_attention_workspace(const awq_edge_attention* attention, size_t* bytes) {
  AWQ_EDGE_REQUIRE(attention != nullptr && bytes != nullptr,
                   "cached_attention_workspace: attention or bytes is null");
  const int status = awq_edge::check_shape(*attention);
  if (status != AWQ_EDGE_OK) return status;
  *bytes = awq_edge::workspace_bytes_of(*attention);
  return AWQ_EDGE_OK;
}

int awq_edge_cached_attention(const awq_edge_attention* attention, void* workspace,
                              size_t workspace_bytes, void* stream) {
  AWQ_EDGE_REQUIRE(attention != nullptr, "cached_attention: attention is null");
  int status = awq_edge::check_shape(*attention);
  if (status == AWQ_EDGE_OK) status = awq_edge::check_tensors(*attention);
  if (status != AWQ_EDGE_OK) return status;
  return attention->dtype == AWQ_EDGE_FLOAT16
             ? awq_edge::run<__half>(*attention, workspace, workspace_bytes, stream)
             : awq_edge::run<__nv_bfloat16>(*attention, workspace, workspace_bytes, stream);
}

}  // extern "C"
