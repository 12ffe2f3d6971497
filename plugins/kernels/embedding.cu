// Rows picked by index: token embeddings, and the wanted positions of a prefill.
#include "async_copy.cuh"
#include "checks.h"
#include "launch.h"
#include "row_grid.h"
#include "vector.cuh"

namespace awq_edge {
namespace {

// 16 bits each, whatever they mean.
template <int kVector>
__global__ void __launch_bounds__(kRowThreads)
    copy_rows_kernel(const int64_t* indices, const uint16_t* source, uint16_t* y, int rows, int size,
                     int64_t source_rows) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int vector = blockIdx.x * blockDim.x + threadIdx.x;
  if (vector >= size / kVector) return;
  for (int row = blockIdx.y; row < rows; row += gridDim.y) {
    int64_t index = indices[row];
    if (index < 0 || index >= source_rows) index = 0;
    store_vector<kVector>(y + static_cast<size_t>(row) * size, vector,
                          load_vector<kVector>(source + index * size, vector));
  }
}

int copy_rows(const char* what, const int64_t* indices, const void* source, void* y, int rows,
              int size, int64_t source_rows, void* stream) {
  const bool vectors = fits_vectors(size);
  const RowGrid shape(rows, vectors ? size / kVectorElements : size);
  auto* kernel = vectors ? copy_rows_kernel<kVectorElements> : copy_rows_kernel<1>;
  return launch(what, kernel, shape.grid, shape.block, 0, stream, indices,
                static_cast<const uint16_t*>(source), static_cast<uint16_t*>(y), rows, size,
                source_rows);
}

}  // namespace
}  // namespace awq_edge

extern "C" {

int awq_edge_embedding(const int64_t* ids, const void* table, void* y, int32_t rows, int32_t size,
                       int32_t vocab, int32_t dtype, void* stream) {
  AWQ_EDGE_REQUIRE_ALIGNED(ids, sizeof(int64_t));
  AWQ_EDGE_REQUIRE_TENSOR(table);
  AWQ_EDGE_REQUIRE_TENSOR(y);
  AWQ_EDGE_REQUIRE_POSITIVE(rows);
  AWQ_EDGE_REQUIRE_POSITIVE(size);
  AWQ_EDGE_REQUIRE_POSITIVE(vocab);
  AWQ_EDGE_REQUIRE_ACTIVATION(dtype);
  return awq_edge::copy_rows(__func__, ids, table, y, rows, size, vocab, stream);
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
  return awq_edge::copy_rows(__func__, rows, x, y, count, size, INT64_MAX, stream);
}

}  // extern "C"
