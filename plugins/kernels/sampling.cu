// The next token of each row of logits: the largest, or a draw from the likeliest.
//
//   row_maximum   the largest logit and its id; greedy rows end here. Otherwise clears key_count and
//                 prepares the row's parameters
//   count_keys    how many logits have each of the 65,536 keys
//   choose_key    bins of 256 keys; the last block of a row cuts at top_k, top_p and min_p, draws, and
//                 knows the key and the rank among the ids that have it
//   find_id       the id of that rank
//
// Everything is exact (sampling_math.h), so a sum is the same in any order and the result is that of
// the reference in tests/kernels/sampling_reference.py, bit by bit.
#include "sampling.h"

#include "arrival.cuh"
#include "async_copy.cuh"
#include "checks.h"
#include "launch.h"
#include "sampling_choice.cuh"

namespace awq_edge {
namespace {

// A temperature that no draw can have is 0.
__device__ __forceinline__ bool is_greedy(const awq_edge_sampler& call, int row) {
  return call.greedy || !(call.sampling[row].temperature > 0.0f);
}

// The row's token, which counts as drawn from now on.
__device__ __forceinline__ void give(const awq_edge_sampler& call, int row, int id) {
  call.ids[row] = id;
  if (call.counts != nullptr) call.counts[static_cast<size_t>(row) * call.vocab + id] += 2;
}

__device__ __forceinline__ float maximum_of(const SamplingWorkspace& work, int row) {
  return value_of(work.best[row]);
}

// Grid: blocks of a row, rows.
template <bool kAdjusted>
__global__ void __launch_bounds__(kSamplingThreads)
    row_maximum(const __grid_constant__ awq_edge_sampler call, SamplingWorkspace work) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int row = blockIdx.y, blocks = gridDim.x;
  const bool greedy = is_greedy(call, row);
  if (!greedy) {
    uint32_t* counts = work.key_count + static_cast<size_t>(row) * kKeys;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < kKeys / 4; i += blocks * blockDim.x)
      reinterpret_cast<uint4*>(counts)[i] = make_uint4(0, 0, 0, 0);
  }
  uint64_t best = 0;
  SamplingRow<kAdjusted>(call, row).visit(
      run_of_block(call.vocab, blockIdx.x, blocks), [&](int id, float value) {
        const uint64_t rank = ranked(value, id);
        best = rank > best ? rank : best;
      });
  best = block_maximum(best);
  uint64_t* partial = work.partial + static_cast<size_t>(row) * kMaxRowBlocks;
  if (threadIdx.x == 0) partial[blockIdx.x] = best;
  if (!last_to_arrive(work.counters + row, blocks)) return;
  best = block_maximum(threadIdx.x < blocks ? __ldcg(partial + threadIdx.x) : 0);
  if (threadIdx.x != 0) return;
  work.best[row] = best;
  if (greedy) {
    give(call, row, number_of(best));
    return;
  }
  const awq_edge_sampling& sampling = call.sampling[row];
  work.settings[row] = {sampling_scale(sampling.temperature), fixed_top_p(sampling.top_p),
                        fixed_min_p(sampling.min_p)};
}

template <bool kAdjusted>
__global__ void __launch_bounds__(kSamplingThreads)
    count_keys(const __grid_constant__ awq_edge_sampler call, SamplingWorkspace work) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int row = blockIdx.y;
  if (is_greedy(call, row)) return;
  const float maximum = maximum_of(work, row);
  uint32_t* counts = work.key_count + static_cast<size_t>(row) * kKeys;
  SamplingRow<kAdjusted>(call, row).visit(
      run_of_block(call.vocab, blockIdx.x, gridDim.x),
      [&](int, float value) { atomicAdd(counts + key_of(value, maximum), 1u); });
}

// Grid: bins, rows.
__global__ void __launch_bounds__(kBinKeys)
    choose_key(const __grid_constant__ awq_edge_sampler call, SamplingWorkspace work) {
  static_assert(kBinKeys == kBins, "one thread per key of a bin, and per bin");
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int row = blockIdx.y, bin = blockIdx.x;
  if (is_greedy(call, row)) return;
  const RowSettings settings = work.settings[row];
  const float largest = maximum_of(work, row);
  const uint32_t maximum = largest != largest ? 0 : kZeroKey;
  const int key = bin * kBinKeys + threadIdx.x;
  const uint32_t count = work.key_count[static_cast<size_t>(row) * kKeys + key];
  const uint64_t weight = count == 0 ? 0 : sampling_weight(key, maximum, settings.scale);
  const uint64_t weights = block_sum(count * weight);
  const uint32_t counts = block_sum(count);
  const int below = block_maximum(count > 0 && weight < settings.min_p ? key : -1);
  if (threadIdx.x == 0) {
    const size_t place = static_cast<size_t>(row) * kBins + bin;
    work.bin_weight[place] = weights;
    work.bin_count[place] = counts;
    work.bin_below[place] = below;
  }
  if (!last_to_arrive(work.counters + row, kBins)) return;
  const ChosenKey chosen = draw(call, work, row, maximum);
  if (threadIdx.x == 0) work.chosen[row] = chosen;
}

// Gives the id of a run that has `rank` ids with the key before it in the run. Every thread looks at a
// stretch of neighbouring ids.
template <bool kAdjusted>
__device__ void find_in_run(const awq_edge_sampler& call, const SamplingRow<kAdjusted>& values,
                            int row, float maximum, Run run, ChosenKey chosen) {
  const int piece = (run.end - run.begin + blockDim.x - 1) / blockDim.x;
  const int begin = run.begin + threadIdx.x * piece;
  const int end = begin + piece < run.end ? begin + piece : run.end;
  uint32_t matches = 0, total;
  for (int id = begin; id < end; ++id) matches += key_of(values.at(id), maximum) == chosen.key;
  uint32_t before = block_exclusive_sum(matches, &total);
  if (before > chosen.rank || chosen.rank - before >= matches) return;
  for (int id = begin; id < end; ++id) {
    if (key_of(values.at(id), maximum) != chosen.key) continue;
    if (before++ != chosen.rank) continue;
    give(call, row, id);
    return;
  }
}

// Grid: blocks of a row, rows.
template <bool kAdjusted>
__global__ void __launch_bounds__(kSamplingThreads)
    find_id(const __grid_constant__ awq_edge_sampler call, SamplingWorkspace work) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int row = blockIdx.y, blocks = gridDim.x;
  if (is_greedy(call, row)) return;
  const SamplingRow<kAdjusted> values(call, row);
  const float maximum = maximum_of(work, row);
  ChosenKey chosen = work.chosen[row];
  uint32_t matches = 0;
  values.visit(run_of_block(call.vocab, blockIdx.x, blocks),
               [&](int, float value) { matches += key_of(value, maximum) == chosen.key; });
  matches = block_sum(matches);
  uint64_t* partial = work.partial + static_cast<size_t>(row) * kMaxRowBlocks;
  if (threadIdx.x == 0) partial[blockIdx.x] = matches;
  if (!last_to_arrive(work.counters + row, blocks)) return;
  __shared__ int found_block;
  __shared__ uint32_t found_rank;
  uint32_t total;
  matches = threadIdx.x < blocks ? static_cast<uint32_t>(__ldcg(partial + threadIdx.x)) : 0;
  const uint32_t before = block_exclusive_sum(matches, &total);
  if (before <= chosen.rank && chosen.rank - before < matches) {
    found_block = threadIdx.x;
    found_rank = chosen.rank - before;
  }
  __syncthreads();
  chosen.rank = found_rank;
  find_in_run(call, values, row, maximum, run_of_block(call.vocab, found_block, blocks), chosen);
}

template <bool kAdjusted>
int launch_sampling(const awq_edge_sampler& call, const SamplingWorkspace& work, void* stream) {
  const int blocks = blocks_of_row(call.rows, call.vocab, device_limits().sm_count);
  const dim3 grid(blocks, call.rows), block(kSamplingThreads);
  const char* what = "awq_edge_sample";
  int status = launch(what, row_maximum<kAdjusted>, grid, block, 0, stream, call, work);
  if (status != AWQ_EDGE_OK || call.greedy) return status;
  status = launch(what, count_keys<kAdjusted>, grid, block, 0, stream, call, work);
  if (status != AWQ_EDGE_OK) return status;
  status = launch(what, choose_key, dim3(kBins, call.rows), dim3(kBinKeys), 0, stream, call, work);
  if (status != AWQ_EDGE_OK) return status;
  return launch(what, find_id<kAdjusted>, grid, block, 0, stream, call, work);
}

__global__ void __launch_bounds__(kSamplingThreads)
    count_tokens_kernel(const int64_t* ids, uint32_t* counts, int count, int vocab) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index < count && ids[index] >= 0 && ids[index] < vocab) atomicOr(counts + ids[index], 1u);
}

int check_sizes(const char* function, int rows, int vocab) {
  AWQ_EDGE_REQUIRE(rows >= 1 && rows <= kMaxSamplingRows, "%s: rows is %d; it must be 1 to %d",
                   function, rows, kMaxSamplingRows);
  AWQ_EDGE_REQUIRE(vocab >= 1 && vocab <= kMaxVocab, "%s: vocab is %d; it must be 1 to %d",
                   function, vocab, kMaxVocab);
  return AWQ_EDGE_OK;
}

}  // namespace
}  // namespace awq_edge

extern "C" {

int awq_edge_sample_workspace(int32_t rows, int32_t vocab, size_t* bytes) {
  AWQ_EDGE_REQUIRE(bytes != nullptr, "%s: bytes is null", __func__);
  const int status = awq_edge::check_sizes(__func__, rows, vocab);
  if (status == AWQ_EDGE_OK) *bytes = awq_edge::SamplingWorkspace(nullptr, rows).bytes;
  return status;
}

int awq_edge_sample(const awq_edge_sampler* sampler, void* workspace, size_t workspace_bytes,
                    void* stream) {
  AWQ_EDGE_REQUIRE(sampler != nullptr, "%s: sampler is null", __func__);
  const awq_edge_sampler& a = *sampler;
  AWQ_EDGE_REQUIRE_TENSOR(a.logits);
  AWQ_EDGE_REQUIRE_ALIGNED(a.ids, sizeof(int64_t));
  if (!a.greedy) AWQ_EDGE_REQUIRE_ALIGNED(a.step, sizeof(int64_t));
  if (!a.greedy || a.counts != nullptr) AWQ_EDGE_REQUIRE_ALIGNED(a.sampling, sizeof(uint64_t));
  for (const void* pointer : {static_cast<const void*>(a.counts), static_cast<const void*>(a.bias),
                              static_cast<const void*>(a.mask)})
    AWQ_EDGE_REQUIRE(awq_edge::is_aligned(pointer, 4),
                     "%s: counts, bias and mask must be aligned to 4 bytes; one is %p", __func__,
                     pointer);
  AWQ_EDGE_REQUIRE_ACTIVATION(a.dtype);
  const int status = awq_edge::check_sizes(__func__, a.rows, a.vocab);
  if (status != AWQ_EDGE_OK) return status;
  AWQ_EDGE_REQUIRE_TENSOR(workspace);
  const awq_edge::SamplingWorkspace work(workspace, a.rows);
  if (workspace_bytes < work.bytes)
    return awq_edge::fail(AWQ_EDGE_WORKSPACE, "%s: the workspace has %zu bytes, %d rows need %zu",
                          __func__, workspace_bytes, a.rows, work.bytes);
  return a.counts != nullptr || a.bias != nullptr || a.mask != nullptr
             ? awq_edge::launch_sampling<true>(a, work, stream)
             : awq_edge::launch_sampling<false>(a, work, stream);
}

int awq_edge_count_tokens(const int64_t* ids, uint32_t* counts, int32_t count, int32_t vocab,
                          void* stream) {
  AWQ_EDGE_REQUIRE_ALIGNED(ids, sizeof(int64_t));
  AWQ_EDGE_REQUIRE_ALIGNED(counts, sizeof(uint32_t));
  AWQ_EDGE_REQUIRE_POSITIVE(count);
  AWQ_EDGE_REQUIRE_POSITIVE(vocab);
  const dim3 grid((count + awq_edge::kSamplingThreads - 1) / awq_edge::kSamplingThreads);
  return awq_edge::launch(__func__, awq_edge::count_tokens_kernel, grid,
                          dim3(awq_edge::kSamplingThreads), 0, stream, ids, counts, count, vocab);
}

}  // extern "C"
