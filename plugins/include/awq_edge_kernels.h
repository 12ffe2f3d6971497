/* W4A16 kernels for language models on CUDA devices: the C interface of libawq_edge_kernels.so.
 *
 * Conventions, unless a function says otherwise:
 *   - Pointers inside parameter structs and to tensors are device pointers, aligned to 16 bytes; the
 *     structs themselves, and where a size is returned, are on the host.
 *   - Tensors are contiguous and row-major, written [slowest, ..., fastest].
 *   - "activation dtype" is `dtype` of the call: AWQ_EDGE_FLOAT16 or AWQ_EDGE_BFLOAT16. All sums
 *     are in float32.
 *   - `stream` is a cudaStream_t. Nothing allocates, synchronizes or throws; every call may be
 *     captured into a CUDA graph. Calls on different streams need different workspaces.
 *   - Results do not depend on timing: the same arguments on the same device give the same bits.
 *   - A function returns AWQ_EDGE_OK or another status, and then has launched nothing;
 *     awq_edge_last_error() puts it into words with the values. Errors inside a kernel surface
 *     at the next synchronization, as with any CUDA kernel.
 */
#ifndef AWQ_EDGE_KERNELS_H_
#define AWQ_EDGE_KERNELS_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define AWQ_EDGE_API __attribute__((visibility("default")))
#else
#define AWQ_EDGE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever a struct or a function changes; the caller compares it before anything else. */
#define AWQ_EDGE_ABI_VERSION 2
/* Raised whenever the packing of qweight, scales or zeros changes; see awq_edge/kernels/packing.py.
 */
#define AWQ_EDGE_LAYOUT_VERSION 1
/* Bytes at the beginning of a workspace that hold counters. */
#define AWQ_EDGE_COUNTER_BYTES 65536
/* Rows of x in one call of awq_edge_w4a16_linear, and up to how many each byte of the weight is read
 * once. */
#define AWQ_EDGE_MAX_ROWS 65535
#define AWQ_EDGE_DECODE_ROWS 16
/* Likeliest tokens of awq_edge_log_probabilities. */
#define AWQ_EDGE_MAX_TOP 20

enum awq_edge_status {
  AWQ_EDGE_OK = 0,
  AWQ_EDGE_INVALID_ARGUMENT = 1, /* a null or misaligned pointer, a size out of range */
  AWQ_EDGE_UNSUPPORTED = 2,      /* a combination that no kernel exists for */
  AWQ_EDGE_WORKSPACE = 3,        /* the workspace is smaller than the query says */
  AWQ_EDGE_CUDA_ERROR = 4,       /* the CUDA runtime refused a launch */
  AWQ_EDGE_NO_LIBRARY = 5        /* a tactic needs cuBLASLt, which could not be loaded */
};

enum awq_edge_dtype {
  AWQ_EDGE_FLOAT16 = 0,
  AWQ_EDGE_BFLOAT16 = 1,
  AWQ_EDGE_INT8 = 2,   /* of the KV cache */
  AWQ_EDGE_FLOAT32 = 3 /* of logits */
};

AWQ_EDGE_API int awq_edge_abi_version(void);
AWQ_EDGE_API int awq_edge_layout_version(void);
/* The meaning of a status, in general. Never null. */
AWQ_EDGE_API const char* awq_edge_status_message(int status);
/* The refusal of this thread's last failing call, with the values; "" if none failed. */
AWQ_EDGE_API const char* awq_edge_last_error(void);
/* Compute capabilities that the library has machine code for: "80,86,87,89,90,120". */
AWQ_EDGE_API const char* awq_edge_architectures(void);
/* The CUDA that it was compiled with, as CUDA writes versions (13000: 13.0). It needs a driver of
 * this major version or a newer one. */
AWQ_EDGE_API int awq_edge_cuda_version(void);

/* ------------------------------------------------------------------ quantized linear
 *
 * y[m, n] = bias[n] + sum_k x[m, k] * (code[n, k] - zero[n, k / group_size]) * scale[n, ...]
 *
 * Codes minus zeros are small integers, exact in both activation dtypes; products are summed in
 * float32 within a group and multiplied by the scale in float32: no weight is ever rounded, except
 * in tactic AWQ_EDGE_TACTIC_CUBLASLT, whose weights are rounded to the activation dtype.
 */
enum awq_edge_activation_kind {
  AWQ_EDGE_ACTIVATION_SILU = 0,
  AWQ_EDGE_ACTIVATION_GELU = 1,         /* of the normal distribution: erf */
  AWQ_EDGE_ACTIVATION_GELU_TANH = 2,    /* its approximation by tanh */
  AWQ_EDGE_ACTIVATION_RELU = 3,
  AWQ_EDGE_ACTIVATION_RELU_SQUARED = 4
};

/* The step behind a linear. ..._MUL: y[m, i] = f(gate[m, i]) * up[m, i], i < out_features / 2: the
 * rows of the weight were interleaved by `pack_gate_up` of awq_edge/kernels/packing.py; y is
 * [m, out_features / 2]. Others: y[m, i] = f(sum + bias). */
enum awq_edge_epilogue {
  AWQ_EDGE_EPILOGUE_NONE = 0,
  AWQ_EDGE_EPILOGUE_SILU_MUL = 1,
  AWQ_EDGE_EPILOGUE_GELU_MUL = 2,
  AWQ_EDGE_EPILOGUE_GELU_TANH_MUL = 3,
  AWQ_EDGE_EPILOGUE_RELU = 4,
  AWQ_EDGE_EPILOGUE_GELU = 5,
  AWQ_EDGE_EPILOGUE_RELU_SQUARED = 6
};

enum awq_edge_tactic {
  AWQ_EDGE_TACTIC_AUTO = 0,
  AWQ_EDGE_TACTIC_DECODE = 1,  /* m <= AWQ_EDGE_DECODE_ROWS: each byte is read once */
  AWQ_EDGE_TACTIC_GEMM = 2,    /* any m: tensor-core tiles, dequantized in registers */
  AWQ_EDGE_TACTIC_CUBLASLT = 3 /* any m: dequantized into the workspace, then cuBLASLt */
};

typedef struct {
  int32_t bits;         /* 3, 4 or 8 */
  int32_t group_size;   /* 32, 64 or 128 */
  int32_t in_features;  /* k: a multiple of group_size and of 8 */
  int32_t out_features; /* n: 1 or more; with ..._MUL a multiple of 2 */
  int32_t dtype;        /* activation dtype */
  int32_t epilogue;     /* awq_edge_epilogue */
  /* In layout version AWQ_EDGE_LAYOUT_VERSION; tiles = ceil(n / 16), blocks = ceil(k / 128). */
  const uint32_t* qweight; /* [tiles, blocks, 64 * bits] */
  const uint16_t* scales;  /* float16 [tiles, blocks * 128 / group_size, 8, 2] */
  const uint32_t* zeros;   /* [tiles, blocks * 128 / group_size, bits == 8 ? 4 : 2]; null:
                              symmetric, zero = 2^(bits-1) */
  const void* bias;        /* activation dtype [n] in the order of the outputs before the
                              epilogue's pairing (gate rows, then up rows); null: none */
} awq_edge_w4a16_weight;

/* Bytes of workspace that awq_edge_w4a16_linear needs for any m up to `max_m` with `tactic`. */
AWQ_EDGE_API int awq_edge_w4a16_workspace(const awq_edge_w4a16_weight* weight, int32_t max_m,
                                          int32_t tactic, size_t* bytes);

/* x: [m, k]; y: [m, n] or [m, n / 2], activation dtype. m: 1 to AWQ_EDGE_MAX_ROWS.
 * workspace: of the queried size. Its first AWQ_EDGE_COUNTER_BYTES must be zero before the first
 * call that uses it; every call leaves them zero. Where the size is AWQ_EDGE_COUNTER_BYTES alone, no
 * work is split and the counters are not touched.
 */
AWQ_EDGE_API int awq_edge_w4a16_linear(const awq_edge_w4a16_weight* weight, const void* x, void* y,
                                       int32_t m, int32_t tactic, void* workspace,
                                       size_t workspace_bytes, void* stream);

/* The weight as numbers: w [n, k] in the activation dtype, rounded once. Rows in the order of the
 * packing (interleaved for ..._MUL). */
AWQ_EDGE_API int awq_edge_w4a16_dequantize(const awq_edge_w4a16_weight* weight, void* w,
                                           void* stream);

/* ------------------------------------------------------------------ linear of 16 bits
 *
 * y[m, n] = bias[n] + sum_k x[m, k] * weight[n, k], for routers, projections and output layers that
 * stay unquantized. Tactics as above: DECODE reads each byte once, GEMM is for machines without
 * cuBLASLt, which AUTO prefers from AWQ_EDGE_DECODE_ROWS rows on.
 */
typedef struct {
  int32_t in_features;  /* k: a multiple of 8 */
  int32_t out_features; /* n */
  int32_t dtype;        /* activation dtype, of all tensors */
  const void* weight;   /* [n, k] */
  const void* bias;     /* [n]; null: none */
} awq_edge_dense_weight;

/* x: [m, k]; y: [m, n]. m: 1 to AWQ_EDGE_MAX_ROWS. Workspace: as in awq_edge_w4a16_linear, its
 * counters not touched; a query holds for every m up to max_m. */
AWQ_EDGE_API int awq_edge_dense_linear(const awq_edge_dense_weight* weight, const void* x, void* y,
                                       int32_t m, int32_t tactic, void* workspace,
                                       size_t workspace_bytes, void* stream);
AWQ_EDGE_API int awq_edge_dense_workspace(const awq_edge_dense_weight* weight, int32_t max_m,
                                          int32_t tactic, size_t* bytes);

/* ------------------------------------------------------------------ routed experts
 *
 * y[m, :] = sum over the top_k experts of row m of share * down(f(gate(x)) * up(x)), from the
 * router's logits: the largest, of equal ones the smaller number. A share is the expert's part of the
 * softmax over all experts, or, with `normalize`, over the chosen ones.
 *
 * Up to AWQ_EDGE_DECODE_ROWS rows the weights of chosen experts alone are read, each byte once; from
 * there on, rows are grouped by expert and multiplied by tensor-core tiles. What gate and up give, and
 * what down gives, is rounded to the activation dtype; the sum is float32, in the order of the
 * logits. */
typedef struct {
  int32_t num_experts; /* 1 to 512 */
  int32_t top_k;       /* experts of a row, 1 to 16 */
  int32_t normalize;   /* 0 or 1 */
} awq_edge_routing;

/* gate_up, down: weights of one expert, [2 i, n] with an epilogue ..._MUL and [n, i]; every array
 * has the experts as its slowest axis, one packed weight behind the other, zeros of all of them or
 * of none. logits: activation dtype [m, num_experts]. x, y: [m, n]. Workspace: as in
 * awq_edge_w4a16_linear; its counters are not touched. A query holds for every m up to max_m. */
AWQ_EDGE_API int awq_edge_experts(const awq_edge_w4a16_weight* gate_up,
                                  const awq_edge_w4a16_weight* down,
                                  const awq_edge_routing* routing, const void* logits,
                                  const void* x, void* y, int32_t m, void* workspace,
                                  size_t workspace_bytes, void* stream);
AWQ_EDGE_API int awq_edge_experts_workspace(const awq_edge_w4a16_weight* gate_up,
                                            const awq_edge_w4a16_weight* down,
                                            const awq_edge_routing* routing, int32_t max_m,
                                            size_t* bytes);

/* ------------------------------------------------------------------ attention
 *
 * Rotary embedding, append to the KV cache and causal grouped-query attention over its valid part:
 * the operator awq_edge::CachedAttention of docs/plugin.md.
 *
 * Token s of sequence b has position p = past_length[b] + s and attends to positions 0..p, or
 * p - window + 1..p. Positions p >= context are not written, and their outputs are undefined.
 *
 * Sequences have `tokens` new tokens each, in rows b * tokens + s; or, with row_begin, each its own
 * number, 0 to `tokens`, in rows row_begin[b] + s, up to row row_begin[b + 1].
 */
typedef struct {
  int32_t dtype;        /* of q, k, v and y */
  int32_t kv_dtype;     /* of the cache: `dtype` itself or AWQ_EDGE_INT8 */
  int32_t batch;        /* b */
  int32_t tokens;       /* s: tokens of this call for every sequence, 1 or more; with row_begin the
                           most of any */
  int32_t num_heads;    /* h: a multiple of num_kv_heads */
  int32_t num_kv_heads; /* g */
  int32_t head_size;    /* d: 32, 64, 96, 128 or 256 */
  int32_t rotary_size;  /* r: even, at most d; 0: no rotation. Channel i pairs with i + r / 2 */
  int32_t context;      /* c: positions of the cache */
  int32_t window;       /* positions that a query sees, itself included; 0: all */
  float scale;          /* multiplies q . k */
  float soft_cap;       /* scores become cap * tanh(score / cap); 0: none */
  int32_t rotary_tables; /* t: tables in cosine and sine; 0 and 1: one */
  int32_t position_axes; /* x: of positions; 0 and 1: one */
  const int64_t* row_begin; /* [b + 1]; null: `tokens` rows a sequence */
  const void* q;        /* [rows, h * d] with row stride q_stride elements */
  const void* k;        /* [rows, g * d], k_stride */
  const void* v;        /* [rows, g * d], v_stride; a merged qkv gives three pointers into it */
  int64_t q_stride, k_stride, v_stride; /* elements from token to token; a multiple of 8 */
  const int64_t* past_length;           /* [b] */
  const float* cosine;                  /* [t, c, r / 2]; null where r is 0 */
  const float* sine;                    /* [t, c, r / 2] */
  const int64_t* rotary_table;          /* [b]: which of the t tables; null: the first */
  const int64_t* positions; /* [rows, x]: rows of the tables, by axis; null: p on every axis. Where
                               keys lie and who sees them is p's in any case */
  const int32_t* pair_axes; /* [r / 2]: the axis that turns a pair; null: axis 0 */
  const void* q_norm;   /* activation dtype [d]: RMSNorm weight of each head of q before the rotation;
                           null: none */
  const void* k_norm;   /* likewise of k */
  float norm_eps;       /* of q_norm and k_norm */
  float norm_offset;    /* added to their weights: 1 where a checkpoint stores weight - 1 */
  const void* sinks;    /* activation dtype [h]: a score of each head that takes its share of the
                           softmax and has no value; null: none */
  void* key_cache;      /* kv_dtype [b, g, c, d] */
  void* value_cache;    /* kv_dtype [b, g, c, d] */
  float* key_scales;    /* float32 [b, g, c]; one per position; null unless kv_dtype is int8 */
  float* value_scales;  /* likewise */
  void* y;              /* activation dtype [rows, h * d] */
} awq_edge_attention;

/* Bytes of workspace for this call and for every one with fewer tokens. Pointers are not read. */
AWQ_EDGE_API int awq_edge_cached_attention_workspace(const awq_edge_attention* attention,
                                                     size_t* bytes);
/* Workspace: as in awq_edge_w4a16_linear, zeroed counters included. */
AWQ_EDGE_API int awq_edge_cached_attention(const awq_edge_attention* attention, void* workspace,
                                           size_t workspace_bytes, void* stream);

/* ------------------------------------------------------------------ the rest of a decode step */

enum awq_edge_norm_kind {
  AWQ_EDGE_NORM_RMS = 0,  /* v / sqrt(mean(v^2) + eps) */
  AWQ_EDGE_NORM_LAYER = 1 /* (v - mean(v)) / sqrt(mean((v - mean(v))^2) + eps) */
};

/* norm(v; w, b) = the kind's v * (w + weight_offset) + b over the last axis, in float32.
 *
 *   branch   = x, or norm(x; post_weight, post_bias)
 *   residual = residual + residual_scale * branch, rounded to the activation dtype, in place
 *   y        = norm(residual; weight, bias)
 *
 * Without a residual, y = norm(x; weight, bias). Without y, the residual alone changes. x and y may
 * be the same. Tensors: activation dtype. */
typedef struct {
  int32_t kind;            /* awq_edge_norm_kind, of both norms */
  int32_t dtype;           /* activation dtype */
  int32_t rows, size;
  float eps;
  float weight_offset;     /* 1 where a checkpoint stores weight - 1 */
  float residual_scale;    /* not 0 where there is a residual */
  const void* x;           /* [rows, size] */
  const void* post_weight; /* [size]; null: the branch is x */
  const void* post_bias;   /* [size]; null: none */
  void* residual;          /* [rows, size]; null: none, and then no post_weight */
  const void* weight;      /* [size] */
  const void* bias;        /* [size]; null: none */
  void* y;                 /* [rows, size]; null: none */
} awq_edge_norm;

AWQ_EDGE_API int awq_edge_normalize(const awq_edge_norm* norm, void* stream);

/* y[r, i] = f(gate[r, i]) * up[r, i], or f(gate[r, i]) where up is null, f an
 * awq_edge_activation_kind. y: [rows, size]. gate, up: rows of `size` elements, `stride` elements
 * apart, so that the halves of merged rows can be meant; aligned to 2 bytes, faster at 16. y may be
 * gate where stride is size. */
AWQ_EDGE_API int awq_edge_activation(const void* gate, const void* up, void* y, int32_t rows,
                                     int32_t size, int64_t stride, int32_t activation,
                                     int32_t dtype, void* stream);

/* y[r, :] = table[ids[r], :] * scale; ids: int64 [rows], each within 0..vocab-1 (others read row
 * 0); table: [vocab, size]. */
AWQ_EDGE_API int awq_edge_embedding(const int64_t* ids, const void* table, void* y, int32_t rows,
                                    int32_t size, int32_t vocab, float scale, int32_t dtype,
                                    void* stream);

/* The same from a packed table of 4 or 8 bits [vocab = out_features, size = in_features], whose
 * numbers are rounded once, after the scale; y: [rows, in_features]. awq_edge_w4a16_linear reads the
 * same bytes as the weight of a tied output layer. No ..._MUL epilogue; bias is not read. */
AWQ_EDGE_API int awq_edge_w4a16_embedding(const awq_edge_w4a16_weight* table, const int64_t* ids,
                                          void* y, int32_t rows, float scale, void* stream);

/* y[row, :] += table[past_length[b] + s, :] for token s of sequence b; rows, tokens and row_begin as
 * in awq_edge_attention. table: [positions, size]; a position behind it reads the last row. */
AWQ_EDGE_API int awq_edge_add_positions(const void* table, const int64_t* past_length,
                                        const int64_t* row_begin, void* y, int32_t batch,
                                        int32_t tokens, int32_t size, int32_t positions,
                                        int32_t dtype, void* stream);

/* y = cap(x * scale), cap(v) = soft_cap * tanh(v / soft_cap), or v where soft_cap is 0. x: [rows,
 * size] in dtype; y: [rows, size] in y_dtype, which is dtype (x and y may be the same then) or
 * AWQ_EDGE_FLOAT32. */
AWQ_EDGE_API int awq_edge_logits(const void* x, void* y, int32_t rows, int32_t size, float scale,
                                 float soft_cap, int32_t dtype, int32_t y_dtype, void* stream);

/* y[i, :] = x[rows[i], :]; rows: int64 [count]; x: [*, size]. For the wanted positions of a
 * prefill. */
AWQ_EDGE_API int awq_edge_gather_rows(const void* x, const int64_t* rows, void* y, int32_t count,
                                      int32_t size, int32_t dtype, void* stream);

/* How a row's token is chosen; in device memory, so that a replayed graph follows changes. What is
 * out of range is off. */
typedef struct {
  float temperature;        /* above 0; otherwise the largest logit is taken */
  float top_p;              /* (0, 1); 1: off */
  float min_p;              /* (0, 1]: of the largest probability; 0: off */
  int32_t top_k;            /* 0: off */
  float repetition_penalty; /* multiplies logits of tokens with a count, positive ones by its
                               reciprocal; above 0, 1: off. As the next two, read with counts only */
  float presence_penalty;   /* taken from logits of tokens that were drawn */
  float frequency_penalty;  /* taken from them for each time */
  int32_t sequence;         /* makes draws of one seed and step differ */
  uint64_t seed;
} awq_edge_sampling;

/* The next token of each row: the largest adjusted logit, the smaller id where two are equal, NaN
 * below everything; or, of the top_k largest, the smallest set whose probability reaches top_p
 * without those below min_p times the largest, one by a counter-based generator (Philox 4x32-10) of
 * (seed, step, sequence). Logits are adjusted by penalties, bias and mask, in this order, in float32.
 * The arithmetic is exact, specified in plugins/kernels/sampling_math.h: another implementation
 * gives the same tokens. */
typedef struct {
  int32_t dtype;        /* activation dtype, of the logits */
  int32_t rows;         /* 1 to 16384 */
  int32_t vocab;        /* 1 to 262144 */
  int32_t greedy;       /* 1: every row takes the largest, whatever its temperature; one launch */
  const void* logits;   /* [rows, vocab] */
  const awq_edge_sampling* sampling; /* [rows]; may be null where greedy and without counts */
  const int64_t* step;  /* [rows], read and not changed; may be null where greedy */
  uint32_t* counts;     /* [rows, vocab]: 1 where a token is in the prompt, plus 2 for each time it was
                           drawn, which this call adds; null: no penalties */
  const float* bias;    /* [rows, vocab], added to logits; null: none */
  const uint32_t* mask; /* [rows, ceil(vocab / 32)]: bit id % 32 of word id / 32 allows a token; null:
                           all are allowed */
  int64_t* ids;         /* [rows] */
} awq_edge_sampler;

/* Workspace: as in awq_edge_w4a16_linear, zeroed counters included. */
AWQ_EDGE_API int awq_edge_sample(const awq_edge_sampler* sampler, void* workspace,
                                 size_t workspace_bytes, void* stream);
AWQ_EDGE_API int awq_edge_sample_workspace(int32_t rows, int32_t vocab, size_t* bytes);

/* Of one row's counts [vocab]: the tokens ids [count] of a prompt are there. Ids outside of the
 * vocabulary are passed over. */
AWQ_EDGE_API int awq_edge_count_tokens(const int64_t* ids, uint32_t* counts, int32_t count,
                                       int32_t vocab, void* stream);

/* Natural logarithms of softmax(logits): chosen [rows], of ids [rows] (null: none), and of the `top`
 * likeliest, 0 to AWQ_EDGE_MAX_TOP: top_ids, top_values [rows, top], likeliest first, equal ones by id.
 * logits: [rows, vocab] in dtype. Workspace: as in awq_edge_sample. */
AWQ_EDGE_API int awq_edge_log_probabilities(const void* logits, const int64_t* ids, float* chosen,
                                            int64_t* top_ids, float* top_values, int32_t rows,
                                            int32_t vocab, int32_t top, int32_t dtype,
                                            void* workspace, size_t workspace_bytes, void* stream);
AWQ_EDGE_API int awq_edge_log_probabilities_workspace(int32_t rows, size_t* bytes);

/* past_length[i] += by, i < batch: the last node of a decode step that is replayed as a graph. */
AWQ_EDGE_API int awq_edge_advance(int64_t* past_length, int32_t batch, int64_t by, void* stream);

/* ------------------------------------------------------------------ memory of others
 *
 * For callers whose workspace and tensors are handed out by a framework, as TensorRT does to the
 * plugin, and who have no CUDA runtime of their own. */

/* Zero the first AWQ_EDGE_COUNTER_BYTES of a workspace that others write to between the calls. */
AWQ_EDGE_API int awq_edge_clear_counters(void* workspace, void* stream);

/* Copy device memory that does not overlap. Addresses need no alignment. */
AWQ_EDGE_API int awq_edge_copy(const void* from, void* to, size_t bytes, void* stream);

#ifdef __cplusplus
}
#endif
#endif /* AWQ_EDGE_KERNELS_H_ */
