// The choice of a key from the counts and weights of all keys of a row, by one block.
#pragma once

#include "philox.h"
#include "sampling_rows.cuh"

namespace awq_edge {

// A row's keys in descending order, cut below `cut_key`, of which `cut_count` remain.
struct KeptKeys {
  const uint32_t* key_count;
  uint32_t maximum;
  float scale;
  int cut_key;
  uint32_t cut_count;

  __device__ uint32_t count(int key) const {
    if (key < cut_key) return 0;
    return key == cut_key ? cut_count : __ldcg(key_count + key);
  }
  __device__ uint64_t weight(int key) const { return sampling_weight(key, maximum, scale); }
  // Of all tokens with the key.
  __device__ uint64_t weight_of_all(int key) const {
    const uint32_t kept = count(key);
    return kept == 0 ? 0 : kept * weight(key);
  }
};

// Thread t's bin, and its key in a bin: both descend with t.
__device__ __forceinline__ int own_bin() { return kBins - 1 - threadIdx.x; }
__device__ __forceinline__ int own_key(int bin) {
  return bin * kBinKeys + kBinKeys - 1 - threadIdx.x;
}

// A position in the sum of weights over descending keys: `offset` past the first token of `key`.
struct Place {
  int key;
  uint64_t offset;
};

// The key that `target`, below the sum of all weights, falls into. bin_weight: of the thread's bin. All
// threads call it with the same target and get the same answer.
__device__ inline Place locate(const KeptKeys& keys, uint64_t bin_weight, uint64_t target) {
  __shared__ int found_bin, found_key;
  __shared__ uint64_t found_before, found_offset;
  uint64_t total;
  uint64_t before = block_exclusive_sum(bin_weight, &total);
  if (before <= target && target - before < bin_weight) {
    found_bin = own_bin();
    found_before = before;
  }
  __syncthreads();
  const int key = own_key(found_bin);
  const uint64_t weight = keys.weight_of_all(key);
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

// Cut `keys` at the top_k largest logits. Returns the weight of the thread's bin that is left.
__device__ inline uint64_t cut_at_top_k(KeptKeys& keys, uint32_t bin_count, uint64_t bin_weight,
                                        uint32_t top_k) {
  __shared__ int cut_bin, cut_key;
  __shared__ uint32_t cut_before, cut_count;
  uint32_t total;
  uint32_t before = block_exclusive_sum(bin_count, &total);
  if (before < top_k && top_k - before <= bin_count) {
    cut_bin = own_bin();
    cut_before = before;
  }
  __syncthreads();
  const int key = own_key(cut_bin);
  const uint32_t count = __ldcg(keys.key_count + key);
  before = cut_before + block_exclusive_sum(count, &total);
  if (before < top_k && top_k - before <= count) {
    cut_key = key;
    cut_count = top_k - before;
  }
  __syncthreads();
  keys.cut_key = cut_key;
  keys.cut_count = cut_count;
  const uint64_t weight = block_sum(keys.weight_of_all(key));
  const int bin = own_bin();
  return bin > cut_bin ? bin_weight : bin == cut_bin ? weight : 0;
}

// The sum of weights that the tokens up to the first one below min_p have. below: of the thread's bin.
__device__ inline uint64_t weight_through_min_p(const KeptKeys& keys, uint64_t bin_weight,
                                                int below) {
  below = block_maximum(below);
  if (below < 0) return block_sum(bin_weight);
  const int cut_bin = below / kBinKeys, key = own_key(cut_bin), bin = own_bin();
  const uint64_t in_bin = key > below ? keys.weight_of_all(key) : 0;
  return block_sum(in_bin + (bin > cut_bin ? bin_weight : 0));
}

// The key of a row, and the rank among the ids that have it. One block, kBins threads.
__device__ inline ChosenKey draw(const awq_edge_sampler& call, const SamplingWorkspace& work,
                                 int row, uint32_t maximum) {
  const awq_edge_sampling& sampling = call.sampling[row];
  const size_t bin = static_cast<size_t>(row) * kBins + own_bin();
  uint64_t bin_weight = __ldcg(work.bin_weight + bin);
  KeptKeys keys{work.key_count + static_cast<size_t>(row) * kKeys, maximum,
                work.settings[row].scale, -1, 0};
  if (sampling.top_k > 0 && sampling.top_k < call.vocab)
    bin_weight = cut_at_top_k(keys, __ldcg(work.bin_count + bin), bin_weight, sampling.top_k);
  // The tokens up to the one with which their sum reaches top_p of all, or to the last above min_p.
  const uint64_t threshold = top_p_threshold(block_sum(bin_weight), work.settings[row].top_p);
  const Place last = locate(keys, bin_weight, threshold - 1);
  const uint64_t last_weight = keys.weight(last.key);
  uint64_t kept = threshold - 1 - last.offset + (last.offset / last_weight + 1) * last_weight;
  const uint64_t through = weight_through_min_p(keys, bin_weight, __ldcg(work.bin_below + bin));
  kept = through < kept ? through : kept;
  const uint64_t bits = random_bits(sampling.seed, call.step[row], sampling.sequence);
  const Place drawn = locate(keys, bin_weight, multiply_high(kept, bits));
  return {static_cast<uint32_t>(drawn.key),
          static_cast<uint32_t>(drawn.offset / keys.weight(drawn.key))};
}

}  // namespace awq_edge
