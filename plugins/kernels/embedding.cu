// Rows picked by index: token embeddings, learned positions, and the wanted positions of a prefill.
#include "async_copy.cuh"
#include "checks.h"
#include "element.cuh"
#include "launch.h"
#include "row_grid.h"
#include "sequence_rows.h"
#include "vector.cuh"

namespace awq_edge {
namespace {

// y[r, :] = source[indices[r], :], 16 bits each, whatever they mean; with kScaled numbers of T, times
// `scale`. Indices outside of the source read row 0.
template <typename T, bool kScaled, int kVector>
__global__ void __launch_bounds__(kRowThreads)
    pick_rows_kernel(const int64_t* indices, const T* source, T* y, int rows, int size,
                     int64_t source_rows, float scale) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int vector = blockIdx.x * blockDim.x + threadIdx.x;
  if (vector >= size / kVector) return;
  for (int row = blockIdx.y; row < rows; row += gridDim.y) {
    int64_t index = indices[row];
    if (index < 0 || index >= source_rows) index = 0;
    Vector<T, kVector> values = load_vector<kVector>(source + index * size, vector);
    if constexpr (kScaled) {
#pragma unroll
      for (int i = 0; i < kVector; ++i)
        values.values[i] = from_float<T>(to_float(values.values[i]) * scale);
    }
    store_vector<kVector>(y + static_cast<size_t>(row) * size, vector, values);
  }
}

template <typename T, bool kScaled>
int pick_rows(const char* what, const int64_t* indices, const void* source, void* y, int rows,
              int size, int64_t source_rows, float scale, void* stream) {
  const bool vectors = fits_vectors(size);
  const RowGrid shape(rows, vectors ? size / kVectorElements : size);
  auto* kernel =
      vectors ? pick_rows_kernel<T, kScaled, kVectorElements> : pick_rows_kernel<T, kScaled, 1>;
  return launch(what, kernel, shape.grid, shape.block, 0, stream, indices,
                static_cast<const T*>(source), static_cast<T*>(y), rows, size, source_rows, scale);
}

// Grid: vectors of a row, tokens, sequences.
template <typename T, int kVector>
__global__ void __launch_bounds__(kRowThreads)
    add_positions_kernel(const T* table, const int64_t* past_length, const int64_t* row_begin, T* y,
                         int tokens, int size, int positions) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int vector = blockIdx.x * blockDim.x + threadIdx.x, sequence = blockIdx.z;
  if (vector >= size / kVector) return;
  const SequenceRows rows = sequence_rows(row_begin, sequence, tokens);
  for (int token = blockIdx.y; token < rows.count; token += gridDim.y) {
    const int64_t wanted = past_length[sequence] + token;
    const int64_t position = wanted < 0 ? 0 : wanted < positions ? wanted : positions - 1;
    T* row = y + (rows.first + token) * size;
    Vector<T, kVector> values = load_vector<kVector>(row, vector);
    const Vector<T, kVector> added = load_vector<kVector>(table + position * size, vector);
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      values.values[i] = from_float<T>(to_float(values.values[i]) + to_float(added.values[i]));
    store_vector<kVector>(row, vector, values);
  }
}

template <typename T>
int add_positions(const void* table, const int64_t* past_length, const int64_t* row_begin, void* y,
                  int batch, int tokens, int size, int positions, void* stream) {
  const bool vectors = fits_vectors(size);
  RowGrid shape(tokens, vectors ? size / kVectorElements : size);
  shape.grid.z = batch;
  auto* kernel = vectors ? add_positions_kernel<T, kVectorElements> : add_positions_kernel<T, 1>;
  return launch("awq_edge_add_positions", kernel, shape.grid, shape.block, 0, stream,
                static_cast<const T*>(table), past_length, row_begin, static_cast<T*>(y), tokens,
                size, positions);
}

}  // namespace
}  // namespace awq_edge

extern "C" {

int awq_edge_embedding(const int64_t* ids, const void* table, void* y, int32_t rows, int32_t size,
                       int32_t vocab, float scale, int32_t dtype, void* stream) {
  AWQ_EDGE_REQUIRE_ALIGNED(ids, sizeof(int64_t));
  AWQ_EDGE_REQUIRE_TENSOR(table);
  AWQ_EDGE_REQUIRE_TENSOR(y);
  AWQ_EDGE_REQUIRE_POSITIVE(rows);
  AWQ_EDGE_REQUIRE_POSITIVE(size);
  AWQ_EDGE_REQUIRE_POSITIVE(vocab);
  AWQ_EDGE_REQUIRE_ACTIVATION(dtype);
  return dtype == AWQ_EDGE_FLOAT16
             ? awq_edge::pick_rows<__half, true>(__func__, ids, table, y, rows, size, vocab, scale,
                                                 stream)
             : awq_edge::pick_rows<__nv_bfloat16, true>(__func__, ids, table, y, rows, size, vocab,
                                                        scale, stream);
}

int awq_edge_gather_rows(const void* x, const int64_t* rows, void* y, int32_t count, int32_t size,
                         int32_t dtype, void* stream) {
  AWQ_EDGE_REQUIRE_TENSOR(x);
  AWQ_EDGE_REQUIRE_ALIGNED(rows, sizeof(int64_t));
  AWQ_EDGE_REQUIRE_TENSOR(y);
  AWQ_EDGE_REQUIRE_POSITIVE(count);
  AWQ_EDGE_REQUIRE_POSITIVE(size);
  AWQ_EDGE_REQUIRE_ACTIVATION(dtype);
  // The caller alone knows the number of rows of x.
  return awq_edge::pick_rows<uint16_t, false>(__func__, rows, x, y, count, size, INT64_MAX, 1.0f,
                                              stream);
}

int awq_edge_add_positions(const void* table, const int64_t* past_length, const int64_t* row_begin,
                           void* y, int32_t batch, int32_t tokens, int32_t size, int32_t positions,
                           int32_t dtype, void* stream) {
  AWQ_EDGE_REQUIRE_TENSOR(table);
  AWQ_EDGE_REQUIRE_ALIGNED(past_length, sizeof(int64_t));
  AWQ_EDGE_REQUIRE(awq_edge::is_aligned(row_begin, sizeof(int64_t)),
                   "%s: row_begin is %p; it must be null or aligned to 8 bytes", __func__,
                   static_cast<const void*>(row_begin));
  AWQ_EDGE_REQUIRE_TENSOR(y);
  AWQ_EDGE_REQUIRE(batch >= 1 && batch <= awq_edge::kMaxGridRows,
                   "%s: batch is %d; it must be 1 to %d", __func__, batch, awq_edge::kMaxGridRows);
  AWQ_EDGE_REQUIRE_POSITIVE(tokens);
  AWQ_EDGE_REQUIRE_POSITIVE(size);
  AWQ_EDGE_REQUIRE_POSITIVE(positions);
  AWQ_EDGE_REQUIRE_ACTIVATION(dtype);
  return dtype == AWQ_EDGE_FLOAT16
             ? awq_edge::add_positions<__half>(table, past_length, row_begin, y, batch, tokens,
                                               size, positions, stream)
             : awq_edge::add_positions<__nv_bfloat16>(table, past_length, row_begin, y, batch,
                                                      tokens, size, positions, stream);
}

}  // extern "C"
