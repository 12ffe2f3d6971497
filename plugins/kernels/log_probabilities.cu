// Logarithms of probabilities: of a row's chosen token, and of its likeliest.
#include "arrival.cuh"
#include "async_copy.cuh"
#include "checks.h"
#include "launch.h"
#include "sampling_rows.cuh"

namespace awq_edge {
namespace {

struct LogProbabilityCall {
  const uint16_t* logits;  // [rows, vocab]
  const int64_t* ids;
  float* chosen;
  int64_t* top_ids;
  float* top_values;
  int vocab, top;
  bool bfloat16;
};

struct LogProbabilityWorkspace {
  uint32_t* counters;  // [rows], zero between calls
  float2* sums;        // [rows, kMaxRowBlocks]: a block's largest logit, and the sum relative to it
  uint64_t* likeliest; // [rows, kMaxRowBlocks, AWQ_EDGE_MAX_TOP]: ranked(), descending; 0: no more
  size_t bytes;

  LogProbabilityWorkspace(void* memory, int rows) {
    const size_t blocks = static_cast<size_t>(rows) * kMaxRowBlocks;
    Places places(memory);
    counters = places.take<uint32_t>(kMaxSamplingRows);
    sums = places.take<float2>(blocks);
    likeliest = places.take<uint64_t>(blocks * AWQ_EDGE_MAX_TOP);
    bytes = places.end() - reinterpret_cast<size_t>(memory);
  }
};

__device__ __forceinline__ float share(float value, float largest) {
  return value == largest ? 1.0f : expf(value - largest);
}

// Grid: blocks of a row, rows. The last block of a row merges what the others have left.
__global__ void __launch_bounds__(kSamplingThreads)
    log_probabilities(const LogProbabilityCall call, LogProbabilityWorkspace work) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int row = blockIdx.y, blocks = gridDim.x;
  const uint16_t* logits = call.logits + static_cast<size_t>(row) * call.vocab;
  const Run run = run_of_block(call.vocab, blockIdx.x, blocks);
  float2* sums = work.sums + static_cast<size_t>(row) * kMaxRowBlocks;
  uint64_t* likeliest =
      work.likeliest + static_cast<size_t>(row) * kMaxRowBlocks * AWQ_EDGE_MAX_TOP;

  uint64_t before = ~uint64_t(0);
  for (int i = 0; i == 0 || i < call.top; ++i) {
    uint64_t next = 0;  // the largest below the one before
    visit_logits(logits, call.vocab, call.bfloat16, run, [&](int id, float value) {
      const uint64_t rank = ranked(value, id);
      if (rank < before && rank > next) next = rank;
    });
    next = block_maximum(next);
    if (threadIdx.x == 0) likeliest[blockIdx.x * AWQ_EDGE_MAX_TOP + i] = next;
    if (i == 0) {
      const float largest = value_of(next);
      float sum = 0.0f;
      visit_logits(logits, call.vocab, call.bfloat16, run,
                   [&](int, float value) { sum += share(value, largest); });
      sum = block_sum(sum);
      if (threadIdx.x == 0) sums[blockIdx.x] = make_float2(largest, sum);
    }
    before = next;
  }
  if (!last_to_arrive(work.counters + row, blocks)) return;

  // A thread has the list of one block, and takes the next of it when the last was the likeliest.
  const bool is_there = threadIdx.x < blocks;
  const uint64_t* own = likeliest + threadIdx.x * AWQ_EDGE_MAX_TOP;
  uint64_t first = is_there ? __ldcg(own) : 0;
  const float largest = value_of(block_maximum(first));
  const float2 sum = is_there ? __ldcg(sums + threadIdx.x) : make_float2(largest, 0.0f);
  const float total = block_sum(sum.y == 0.0f ? 0.0f : sum.y * share(sum.x, largest));
  const float shift = largest + logf(total);
  if (threadIdx.x == 0 && call.chosen != nullptr) {
    const int64_t id = call.ids[row];
    const bool is_token = id >= 0 && id < call.vocab;
    call.chosen[row] = is_token ? value_of_bits(logits[id], call.bfloat16) - shift : -INFINITY;
  }
  int taken = 0;
  for (int i = 0; i < call.top; ++i) {
    const uint64_t best = block_maximum(first);
    if (best != 0 && best == first) {
      const size_t place = static_cast<size_t>(row) * call.top + i;
      call.top_ids[place] = number_of(best);
      call.top_values[place] = value_of(best) - shift;
      first = ++taken < call.top ? __ldcg(own + taken) : 0;
    }
  }
}

}  // namespace
}  // namespace awq_edge

extern "C" {

int awq_edge_log_probabilities_workspace(int32_t rows, size_t* bytes) {
  AWQ_EDGE_REQUIRE(bytes != nullptr, "%s: bytes is null", __func__);
  AWQ_EDGE_REQUIRE(rows >= 1 && rows <= awq_edge::kMaxSamplingRows,
                   "%s: rows is %d; it must be 1 to %d", __func__, rows,
                   awq_edge::kMaxSamplingRows);
  *bytes = awq_edge::LogProbabilityWorkspace(nullptr, rows).bytes;
  return AWQ_EDGE_OK;
}

int awq_edge_log_probabilities(const void* logits, const int64_t* ids, float* chosen,
                               int64_t* top_ids, float* top_values, int32_t rows, int32_t vocab,
                               int32_t top, int32_t dtype, void* workspace,
                               size_t workspace_bytes, void* stream) {
  AWQ_EDGE_REQUIRE_TENSOR(logits);
  if (chosen != nullptr) AWQ_EDGE_REQUIRE_ALIGNED(ids, sizeof(int64_t));
  AWQ_EDGE_REQUIRE(awq_edge::is_aligned(chosen, 4), "%s: chosen %p is not aligned to 4 bytes",
                   __func__, static_cast<const void*>(chosen));
  AWQ_EDGE_REQUIRE(rows >= 1 && rows <= awq_edge::kMaxSamplingRows,
                   "%s: rows is %d; it must be 1 to %d", __func__, rows,
                   awq_edge::kMaxSamplingRows);
  AWQ_EDGE_REQUIRE(vocab >= 1 && vocab <= awq_edge::kMaxVocab, "%s: vocab is %d; it must be 1 to %d",
                   __func__, vocab, awq_edge::kMaxVocab);
  const int most = vocab < AWQ_EDGE_MAX_TOP ? vocab : AWQ_EDGE_MAX_TOP;
  AWQ_EDGE_REQUIRE(top >= 0 && top <= most, "%s: top is %d; it must be 0 to %d", __func__, top,
                   most);
  if (top > 0) {
    AWQ_EDGE_REQUIRE_ALIGNED(top_ids, sizeof(int64_t));
    AWQ_EDGE_REQUIRE_ALIGNED(top_values, sizeof(float));
  }
  AWQ_EDGE_REQUIRE_ACTIVATION(dtype);
  AWQ_EDGE_REQUIRE_TENSOR(workspace);
  const awq_edge::LogProbabilityWorkspace work(workspace, rows);
  if (workspace_bytes < work.bytes)
    return awq_edge::fail(AWQ_EDGE_WORKSPACE, "%s: the workspace has %zu bytes, %d rows need %zu",
                          __func__, workspace_bytes, rows, work.bytes);
  const awq_edge::LogProbabilityCall call{static_cast<const uint16_t*>(logits),
                                          ids,
                                          chosen,
                                          top_ids,
                                          top_values,
                                          vocab,
                                          top,
                                          dtype == AWQ_EDGE_BFLOAT16};
  const int blocks = awq_edge::blocks_of_row(rows, vocab, awq_edge::device_limits().sm_count);
  return awq_edge::launch(__func__, awq_edge::log_probabilities, dim3(blocks, rows),
                          dim3(awq_edge::kSamplingThreads), 0, stream, call, work);
}

}  // extern "C"
