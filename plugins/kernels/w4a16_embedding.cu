// Token embeddings from a packed table, which the output layer's linear reads too.
#include "async_copy.cuh"
#include "checks.h"
#include "element.cuh"
#include "launch.h"
#include "row_grid.h"
#include "vector.cuh"
#include "w4a16_launch.h"
#include "w4a16_layout.h"

namespace awq_edge {
namespace {

struct TableArguments {
  const uint32_t* qweight;
  const __half* scales;
  const uint32_t* zeros;  // may be null
  const int64_t* ids;
  void* y;
  int rows, vocab, size;
  int blocks;
  int group_size;
  float scale;
};

// A thread has 8 channels of a row: bits / 2 words of one lane.
template <typename T, int kBits>
__global__ void __launch_bounds__(kRowThreads) packed_rows_kernel(const TableArguments a) {
  constexpr int kWords = kBits / 2;
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int channel = (blockIdx.x * blockDim.x + threadIdx.x) * kVectorElements;
  if (channel >= a.size) return;
  const int block = channel / kBlockChannels, group = channel / a.group_size;
  const int groups = a.blocks * groups_per_block(a.group_size);
  for (int row = blockIdx.y; row < a.rows; row += gridDim.y) {
    int64_t id = a.ids[row];
    if (id < 0 || id >= a.vocab) id = 0;
    const int64_t tile = id / kTileRows;
    const int in_tile = static_cast<int>(id % kTileRows);
    const RowChunk chunk = row_chunk(kBits, in_tile, channel % kBlockChannels);
    const uint32_t* words =
        a.qweight + (tile * a.blocks + block) * block_words(kBits) +
        word_index(kBits, chunk.lane, chunk.word);
    const auto codes = load_vector<kWords>(words, 0);
    const int64_t tile_group = tile * groups + group;
    const float group_scale =
        __half2float(a.scales[tile_group * kTileRows + in_tile % 8 * 2 + in_tile / 8]) * a.scale;
    uint32_t zero = 1u << (kBits - 1);
    if (a.zeros != nullptr)
      zero = extract_zero(kBits, a.zeros + tile_group * zero_words(kBits), in_tile);
    Vector<T, kVectorElements> values;
#pragma unroll
    for (int i = 0; i < kVectorElements; ++i) {
      const int code = static_cast<int>(chunk_code(kBits, codes.values, chunk, i));
      values.values[i] = from_float<T>(float(code - static_cast<int>(zero)) * group_scale);
    }
    store_vector<kVectorElements>(static_cast<T*>(a.y) + static_cast<size_t>(row) * a.size,
                                  channel / kVectorElements, values);
  }
}

template <typename T>
int launch_packed_rows(const TableArguments& a, int bits, void* stream) {
  const RowGrid shape(a.rows, a.size / kVectorElements);
  auto* kernel = bits == 4 ? packed_rows_kernel<T, 4> : packed_rows_kernel<T, 8>;
  return launch("awq_edge_w4a16_embedding", kernel, shape.grid, shape.block, 0, stream, a);
}

}  // namespace
}  // namespace awq_edge

extern "C" int awq_edge_w4a16_embedding(const awq_edge_w4a16_weight* table, const int64_t* ids,
                                        void* y, int32_t rows, float scale, void* stream) {
  const int status = awq_edge::check_weight(table, true);
  if (status != AWQ_EDGE_OK) return status;
  AWQ_EDGE_REQUIRE(table->bits == 4 || table->bits == 8, "%s: bits is %d; supported are 4 and 8",
                   __func__, table->bits);
  AWQ_EDGE_REQUIRE(!awq_edge::epilogue_of(table->epilogue).paired,
                   "%s: epilogue is %d; rows of two tables are interleaved", __func__,
                   table->epilogue);
  AWQ_EDGE_REQUIRE_ALIGNED(ids, sizeof(int64_t));
  AWQ_EDGE_REQUIRE_TENSOR(y);
  AWQ_EDGE_REQUIRE_POSITIVE(rows);
  const awq_edge::TableArguments arguments{
      table->qweight,
      reinterpret_cast<const __half*>(table->scales),
      table->zeros,
      ids,
      y,
      rows,
      table->out_features,
      table->in_features,
      awq_edge::ceil_div(table->in_features, awq_edge::kBlockChannels),
      table->group_size,
      scale};
  return table->dtype == AWQ_EDGE_FLOAT16
             ? awq_edge::launch_packed_rows<__half>(arguments, table->bits, stream)
             : awq_edge::launch_packed_rows<__nv_bfloat16>(arguments, table->bits, stream);
}
