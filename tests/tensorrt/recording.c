/* The functions of the kernel library that the plugin calls. They compute nothing and write down
 * what they were called with; the other functions of the header are in stubs beside this. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "awq_edge_kernels.h"

static char text[1 << 16];
static size_t used;
static int has_cublaslt;

static void record(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  used += vsnprintf(text + used, sizeof text - used, format, arguments);
  va_end(arguments);
}

/* What was recorded since the last time. */
const char* recording_take(void) {
  static char taken[sizeof text];
  snprintf(taken, sizeof taken, "%s", text);
  text[0] = 0;
  used = 0;
  return taken;
}

void recording_set_cublaslt(int there) { has_cublaslt = there; }

static unsigned long long at(const void* pointer) { return (unsigned long long)(size_t)pointer; }

int awq_edge_w4a16_workspace(const awq_edge_w4a16_weight* weight, int32_t max_m, int32_t tactic,
                             size_t* bytes) {
  if (tactic == AWQ_EDGE_TACTIC_CUBLASLT && !has_cublaslt) return AWQ_EDGE_NO_LIBRARY;
  if (tactic == AWQ_EDGE_TACTIC_DECODE && max_m > 16) return AWQ_EDGE_INVALID_ARGUMENT;
  /* The work on a small weight is not split. */
  *bytes = AWQ_EDGE_COUNTER_BYTES;
  if (weight->out_features > 64)
    *bytes += 1000000 * (size_t)tactic + 100 * (size_t)max_m + (size_t)weight->dtype;
  return AWQ_EDGE_OK;
}

int awq_edge_w4a16_linear(const awq_edge_w4a16_weight* weight, const void* x, void* y, int32_t m,
                          int32_t tactic, void* workspace, size_t workspace_bytes, void* stream) {
  record("linear bits=%d group_size=%d in=%d out=%d dtype=%d epilogue=%d", weight->bits,
         weight->group_size, weight->in_features, weight->out_features, weight->dtype,
         weight->epilogue);
  record(" qweight=%llu scales=%llu zeros=%llu bias=%llu x=%llu y=%llu m=%d tactic=%d",
         at(weight->qweight), at(weight->scales), at(weight->zeros), at(weight->bias), at(x), at(y),
         m, tactic);
  record(" workspace=%llu bytes=%zu stream=%llu\n", at(workspace), workspace_bytes, at(stream));
  return getenv("RECORDING_REFUSES") ? AWQ_EDGE_UNSUPPORTED : AWQ_EDGE_OK;
}

int awq_edge_cached_attention_workspace(const awq_edge_attention* call, size_t* bytes) {
  *bytes = AWQ_EDGE_COUNTER_BYTES +
           (size_t)call->batch * call->tokens * call->context * call->num_heads * call->head_size;
  return AWQ_EDGE_OK;
}

int awq_edge_cached_attention(const awq_edge_attention* call, void* workspace,
                              size_t workspace_bytes, void* stream) {
  record("attention dtype=%d kv_dtype=%d batch=%d tokens=%d heads=%d/%d head_size=%d", call->dtype,
         call->kv_dtype, call->batch, call->tokens, call->num_heads, call->num_kv_heads,
         call->head_size);
  record(" rotary_size=%d context=%d window=%d scale=%g soft_cap=%g norm_eps=%g",
         call->rotary_size, call->context, call->window, call->scale, call->soft_cap,
         call->norm_eps);
  record(" q=%llu/%lld k=%llu/%lld v=%llu/%lld", at(call->q), (long long)call->q_stride,
         at(call->k), (long long)call->k_stride, at(call->v), (long long)call->v_stride);
  record(" past_length=%llu cosine=%llu sine=%llu q_norm=%llu k_norm=%llu", at(call->past_length),
         at(call->cosine), at(call->sine), at(call->q_norm), at(call->k_norm));
  record(" key_cache=%llu value_cache=%llu key_scales=%llu value_scales=%llu y=%llu",
         at(call->key_cache), at(call->value_cache), at(call->key_scales), at(call->value_scales),
         at(call->y));
  record(" workspace=%llu bytes=%zu stream=%llu\n", at(workspace), workspace_bytes, at(stream));
  return AWQ_EDGE_OK;
}

int awq_edge_clear_counters(void* workspace, void* stream) {
  record("clear workspace=%llu stream=%llu\n", at(workspace), at(stream));
  return AWQ_EDGE_OK;
}

int awq_edge_copy(const void* from, void* to, size_t bytes, void* stream) {
  record("copy from=%llu to=%llu bytes=%zu stream=%llu\n", at(from), at(to), bytes, at(stream));
  return AWQ_EDGE_OK;
}
