// The next token of each row of logits: the largest, or a draw from the likeliest.
//
//   row_maximum   the largest logit and its id; greedy ends here. Otherwise clears key_count
//   count_keys    how many logits have each of the 65,536 keys
//   choose_key    bins of 256 keys; the last block of a row cuts at top_k and top_p, draws, and
//                 knows the key and the rank among the ids that have it
//   find_id       the id of that rank
//
// Everything is integers (sampling_math.h), so a sum is the same in any order and the result is
// that of the reference in tests/kernels/sampling_reference.py, bit by bit.
#include "sampling.h"

#include "arrival.cuh"
#include "async_copy.cuh"
#include "block_sum.cuh"
#include "checks.h"
#include "launch.h"
#include "philox.h"
#include "vector.cuh"

namespace awq_edge {
namespace {

// The vocabulary's part of one block: a run of ids, so that ranks can be counted.
struct Run {
  int begin, end;
};

__device__ __forceinline__ Run run_of_block(int vocab, int block, int blocks) {
  const int vectors = (vocab + kVectorElements - 1) / kVectorElements;
  const int share = (vectors + blocks - 1) / blocks * kVectorElements;
  const int begin = block * share;
  return {begin < vocab ? begin : vocab, begin + share < vocab ? begin + share : vocab};
}

// Calls visit(id, key) for the logits of a run, each thread in ascending order of ids.
// Rows whose length is no multiple of eight start anywhere: those are read one by one.
template <typename Visit>
__device__ __forceinline__ void visit_keys(const SamplingCall& call, int row, Run run,
                                           Visit visit) {
  const uint16_t* logits = call.logits + static_cast<size_t>(row) * call.vocab;
  if (call.vocab % kVectorElements != 0) {
    for (int id = run.begin + threadIdx.x; id < run.end; id += blockDim.x)
      visit(id, sort_key(logits[id], call.bfloat16));
    return;
  }
  for (int id = run.begin + threadIdx.x * kVectorElements; id < run.end;
       id += blockDim.x * kVectorElements) {
    const auto vector = load_vector<kVectorElements>(logits, id / kVectorElements);
#pragma unroll
    for (int i = 0; i < kVectorElements; ++i)
      visit(id + i, sort_key(vector.values[i], call.bfloat16));
  }
}

// ------------------------------------------------------------------ row_maximum

__device__ __forceinline__ uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

__device__ __forceinline__ uint64_t block_maximum(uint64_t value) {
  __shared__ uint64_t of_warp[kMaxWarps];
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2)
    value = larger(value, __shfl_xor_sync(kAllLanes, value, step));
  __syncthreads();
  if (threadIdx.x % kWarpSize == 0) of_warp[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  for (int warp = 0; warp < blockDim.x / kWarpSize; ++warp) value = larger(value, of_warp[warp]);
  return value;
}

// Grid: blocks of a row, rows.
__global__ void __launch_bounds__(kSamplingThreads)
    row_maximum(SamplingCall call, SamplingWorkspace work) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int row = blockIdx.y, blocks = gridDim.x;
  if (!call.greedy) {
    uint32_t* counts = work.key_count + static_cast<size_t>(row) * kKeys;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < kKeys / 4; i += blocks * blockDim.x)
      reinterpret_cast<uint4*>(counts)[i] = make_uint4(0, 0, 0, 0);
  }
  uint64_t best = 0;
  visit_keys(call, row, run_of_block(call.vocab, blockIdx.x, blocks), [&](int id, uint32_t key) {
    // The smaller of two ids with the same key has the larger complement.
    best = larger(best, static_cast<uint64_t>(key) << 32 | ~static_cast<uint32_t>(id));
  });
  best = block_maximum(best);
  uint64_t* partial = work.partial + static_cast<size_t>(row) * kMaxRowBlocks;
  if (threadIdx.x == 0) partial[blockIdx.x] = best;
  if (!last_to_arrive(work.counters + row, blocks)) return;
  best = block_maximum(threadIdx.x < blocks ? __ldcg(partial + threadIdx.x) : 0);
  if (threadIdx.x != 0) return;
  work.best[row] = best;
  if (call.greedy) call.ids[row] = static_cast<uint32_t>(~best);
}

// ------------------------------------------------------------------ count_keys

__global__ void __launch_bounds__(kSamplingThreads)
    count_keys(SamplingCall call, SamplingWorkspace work) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int row = blockIdx.y;
  uint32_t* counts = work.key_count + static_cast<size_t>(row) * kKeys;
  visit_keys(call, row, run_of_block(call.vocab, blockIdx.x, gridDim.x),
             [&](int, uint32_t key) { atomicAdd(counts + key, 1u); });
}

// ------------------------------------------------------------------ choose_key

// A row's keys in descending order, cut below `cut_key`, of which `cut_count` remain.
struct KeptKeys {
  const uint32_t* key_count;
  uint32_t maximum;
  float scale;
  bool bfloat16;
  int cut_key;
  uint32_t cut_count;

  __device__ uint32_t count(int key) const {
    if (key < cut_key) return 0;
    return key == cut_key ? cut_count : __ldcg(key_count + key);
  }
  __device__ uint64_t weight(int key) const {
    return sampling_weight(key, maximum, scale, bfloat16);
  }
};

// A position in the sum of weights over descending keys: `offset` past the first token of `key`.
struct Place {
  int key;
  uint64_t offset;
};

// The bin that `target`, below the sum of all weights, falls into.
// bin_weight: of thread t's bin, which is bin kBins - 1 - t. All threads call it with the same target and get the same answer.
__device__ Place locate(const KeptKeys& keys, uint64_t bin_weight, uint64_t target) {
  __shared__ int found_bin, found_key;
  __shared__ uint64_t found_before, found_offset;
  uint64_t total;
  uint64_t before = block_exclusive_sum(bin_weight, &total);
  if (before <= target && target - before < bin_weight) {
    found_bin = kBins - 1 - threadIdx.x;
    found_before = before;
  }
  __syncthreads();
  const int key = found_bin * kBinKeys + kBinKeys - 1 - threadIdx.x;
  const uint32_t count = keys.count(key);
  const uint64_t weight = count == 0 ? 0 : count * keys.weight(key);
  before = found_before + block_exclusive_sum(weight, &total);
  if (before <= target && target - before < weight) {
    found_key = key;
    found_offset = target - before;
  }
  __syncthreads();
  const Place place{found_key, found_offset};
  __syncthreads();  // before the next call writes
  return place;
}

// Cut `keys` at the top_k largest logits. Returns the weight of thread t's bin that is left.
__device__ uint64_t cut_at_top_k(KeptKeys& keys, uint32_t bin_count, uint64_t bin_weight,
                                 uint32_t top_k) {
  __shared__ int cut_bin, cut_key;
  __shared__ uint32_t cut_before, cut_count;
  uint32_t total;
  uint32_t before = block_exclusive_sum(bin_count, &total);
  if (before < top_k && top_k - before <= bin_count) {
    cut_bin = kBins - 1 - threadIdx.x;
    cut_before = before;
  }
  __syncthreads();
  const int key = cut_bin * kBinKeys + kBinKeys - 1 - threadIdx.x;
  const uint32_t count = __ldcg(keys.key_count + key);
  before = cut_before + block_exclusive_sum(count, &total);
  if (before < top_k && top_k - before <= count) {
    cut_key = key;
    cut_count = top_k - before;
  }
  __syncthreads();
  keys.cut_key = cut_key;
  keys.cut_count = cut_count;
  const uint32_t kept = keys.count(key);
  const uint64_t weight = block_sum(kept == 0 ? 0 : kept * keys.weight(key));
  const int bin = kBins - 1 - threadIdx.x;
  return bin > cut_bin ? bin_weight : bin == cut_bin ? weight : 0;
}

// One block, kBins threads.
__device__ ChosenKey draw(const SamplingCall& call, const SamplingWorkspace& work, int row,
                          uint32_t maximum) {
  const size_t bin = static_cast<size_t>(row) * kBins + kBins - 1 - threadIdx.x;
  uint64_t bin_weight = __ldcg(work.bin_weight + bin);
  KeptKeys keys{work.key_count + static_cast<size_t>(row) * kKeys, maximum, call.scale,
                call.bfloat16, -1, 0};
  if (call.top_k > 0 && call.top_k < call.vocab)
    bin_weight = cut_at_top_k(keys, __ldcg(work.bin_count + bin), bin_weight, call.top_k);
  // The tokens up to the one with which their sum reaches top_p of all.
  uint64_t threshold = top_p_threshold(block_sum(bin_weight), call.top_p);
  const Place last = locate(keys, bin_weight, threshold - 1);
  const uint64_t last_weight = keys.weight(last.key);
  const uint64_t kept = threshold - 1 - last.offset + (last.offset / last_weight + 1) * last_weight;
  const uint64_t target = multiply_high(kept, random_bits(call.seed, *call.step, row));
  const Place drawn = locate(keys, bin_weight, target);
  return {static_cast<uint32_t>(drawn.key),
          static_cast<uint32_t>(drawn.offset / keys.weight(drawn.key))};
}

// Grid: bins, rows.
__global__ void __launch_bounds__(kBinKeys) choose_key(SamplingCall call, SamplingWorkspace work) {
  static_assert(kBinKeys == kBins, "one thread per key of a bin, and per bin");
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int row = blockIdx.y, bin = blockIdx.x;
  const uint32_t maximum = static_cast<uint32_t>(work.best[row] >> 32);
  const int key = bin * kBinKeys + threadIdx.x;
  const uint32_t count = work.key_count[static_cast<size_t>(row) * kKeys + key];
  const uint64_t weight =
      count == 0 ? 0 : count * sampling_weight(key, maximum, call.scale, call.bfloat16);
  const uint64_t weights = block_sum(weight);
  const uint32_t counts = block_sum(count);
  if (threadIdx.x == 0) {
    work.bin_weight[static_cast<size_t>(row) * kBins + bin] = weights;
    work.bin_count[static_cast<size_t>(row) * kBins + bin] = counts;
  }
  if (!last_to_arrive(work.counters + row, kBins)) return;
  const ChosenKey chosen = draw(call, work, row, maximum);
  if (threadIdx.x == 0) work.chosen[row] = chosen;
}

// ------------------------------------------------------------------ find_id

// The number of ids of a run with the key, and in `id` the one with `rank` ids of the run before it.
// Every thread looks at a stretch of neighbouring ids.
__device__ void find_in_run(const SamplingCall& call, int row, Run run, uint32_t key,
                            uint32_t rank) {
  const uint16_t* logits = call.logits + static_cast<size_t>(row) * call.vocab;
  const int piece = (run.end - run.begin + blockDim.x - 1) / blockDim.x;
  const int begin = run.begin + threadIdx.x * piece;
  const int end = begin + piece < run.end ? begin + piece : run.end;
  uint32_t matches = 0, total;
  for (int id = begin; id < end; ++id) matches += sort_key(logits[id], call.bfloat16) == key;
  uint32_t before = block_exclusive_sum(matches, &total);
  if (before > rank || rank - before >= matches) return;
  for (int id = begin; id < end; ++id) {
    if (sort_key(logits[id], call.bfloat16) != key) continue;
    if (before++ == rank) call.ids[row] = id;
  }
}

// Grid: blocks of a row, rows.
__global__ void __launch_bounds__(kSamplingThreads)
    find_id(SamplingCall call, SamplingWorkspace work) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int row = blockIdx.y, blocks = gridDim.x;
  const ChosenKey chosen = work.chosen[row];
  uint32_t matches = 0;
  visit_keys(call, row, run_of_block(call.vocab, blockIdx.x, blocks),
             [&](int, uint32_t key) { matches += key == chosen.key; });
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
  find_in_run(call, row, run_of_block(call.vocab, found_block, blocks), chosen.key, found_rank);
}

// ------------------------------------------------------------------ host

// Blocks that share a row: enough for every multiprocessor, none with less than a vector a thread.
int blocks_of_row(int rows, int vocab) {
  const int useful = (vocab - 1) / (kSamplingThreads * kVectorElements) + 1;
  const int wanted = (2 * device_limits().sm_count - 1) / rows + 1;
  const int blocks = useful < wanted ? useful : wanted;
  return blocks < kMaxRowBlocks ? blocks : kMaxRowBlocks;
}

int launch_sampling(const SamplingCall& call, const SamplingWorkspace& work, void* stream) {
  static_assert(kMaxRowBlocks <= kSamplingThreads, "one thread merges one block's result");
  const dim3 grid(blocks_of_row(call.rows, call.vocab), call.rows), block(kSamplingThreads);
  const char* what = "awq_edge_sample";
  int status = launch(what, row_maximum, grid, block, 0, stream, call, work);
  if (status != AWQ_EDGE_OK || call.greedy) return status;
  status = launch(what, count_keys, grid, block, 0, stream, call, work);
  if (status != AWQ_EDGE_OK) return status;
  status = launch(what, choose_key, dim3(kBins, call.rows), dim3(kBinKeys), 0, stream, call, work);
  if (status != AWQ_EDGE_OK) return status;
  return launch(what, find_id, grid, block, 0, stream, call, work);
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
  if (status == AWQ_EDGE_OK) *bytes = awq_edge::SamplingWorkspace::bytes(rows);
  return status;
}

int awq_edge_sample(const void* logits, const awq_edge_sampling* sampling, const int64_t* step,
                    int64_t* ids, int32_t rows, int32_t vocab, int32_t dtype, void* workspace,
                    size_t workspace_bytes, void* stream) {
  AWQ_EDGE_REQUIRE_TENSOR(logits);
  AWQ_EDGE_REQUIRE(sampling != nullptr, "%s: sampling is null", __func__);
  const float temperature = sampling->temperature, top_p = sampling->top_p;
  AWQ_EDGE_REQUIRE(temperature >= 0.0f && isfinite(temperature),
                   "%s: temperature is %g; it must be 0 or more, and finite", __func__, temperature);
  AWQ_EDGE_REQUIRE(top_p > 0.0f && top_p <= 1.0f, "%s: top_p is %g; it must be above 0, at most 1",
                   __func__, top_p);
  AWQ_EDGE_REQUIRE(sampling->top_k >= 0, "%s: top_k is %d; it must be 0 or more", __func__,
                   sampling->top_k);
  AWQ_EDGE_REQUIRE_ALIGNED(ids, sizeof(int64_t));
  const bool greedy = temperature == 0.0f;
  if (!greedy) AWQ_EDGE_REQUIRE_ALIGNED(step, sizeof(int64_t));
  AWQ_EDGE_REQUIRE_ACTIVATION(dtype);
  const int status = awq_edge::check_sizes(__func__, rows, vocab);
  if (status != AWQ_EDGE_OK) return status;
  AWQ_EDGE_REQUIRE_TENSOR(workspace);
  const size_t needed = awq_edge::SamplingWorkspace::bytes(rows);
  if (workspace_bytes < needed)
    return awq_edge::fail(AWQ_EDGE_WORKSPACE, "%s: the workspace has %zu bytes, %d rows need %zu",
                          __func__, workspace_bytes, rows, needed);
  constexpr double kLog2E = 1.4426950408889634;
  const float scale = greedy ? 0.0f : static_cast<float>(kLog2E / temperature);
  const awq_edge::SamplingCall call{static_cast<const uint16_t*>(logits),
                                    step,
                                    ids,
                                    rows,
                                    vocab,
                                    dtype == AWQ_EDGE_BFLOAT16,
                                    greedy,
                                    sampling->top_k,
                                    awq_edge::fixed_top_p(top_p),
                                    scale,
                                    sampling->seed};
  return awq_edge::launch_sampling(call, awq_edge::SamplingWorkspace(workspace, rows), stream);
}

}  // extern "C"
