// A row of logits, spread over blocks: runs of ids, and the numbers at them.
#pragma once

#include "block_maximum.cuh"
#include "element.cuh"
#include "sampling.h"
#include "vector.cuh"

namespace awq_edge {

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

__device__ __forceinline__ float value_of_bits(uint16_t bits, bool bfloat16) {
  return bfloat16 ? __uint_as_float(static_cast<uint32_t>(bits) << 16)
                  : __half2float(__ushort_as_half(bits));
}

// Calls visit(id, logit) for a run of a row, each thread in ascending order of ids. Rows whose length
// is no multiple of eight start anywhere: those are read one by one.
template <typename Visit>
__device__ __forceinline__ void visit_logits(const uint16_t* logits, int vocab, bool bfloat16,
                                             Run run, Visit visit) {
  if (vocab % kVectorElements != 0) {
    for (int id = run.begin + threadIdx.x; id < run.end; id += blockDim.x)
      visit(id, value_of_bits(logits[id], bfloat16));
    return;
  }
  for (int id = run.begin + threadIdx.x * kVectorElements; id < run.end;
       id += blockDim.x * kVectorElements) {
    const auto vector = load_vector<kVectorElements>(logits, id / kVectorElements);
#pragma unroll
    for (int i = 0; i < kVectorElements; ++i) visit(id + i, value_of_bits(vector.values[i], bfloat16));
  }
}

// One row of a call: its logits, adjusted where the call has something to adjust them by.
template <bool kAdjusted>
class SamplingRow {
 public:
  __device__ SamplingRow(const awq_edge_sampler& call, int row)
      : logits_(static_cast<const uint16_t*>(call.logits) + offset(call, row)),
        counts_(call.counts == nullptr ? nullptr : call.counts + offset(call, row)),
        bias_(call.bias == nullptr ? nullptr : call.bias + offset(call, row)),
        mask_(call.mask == nullptr
                  ? nullptr
                  : call.mask + static_cast<size_t>(row) * ((call.vocab + 31) / 32)),
        vocab_(call.vocab),
        bfloat16_(call.dtype == AWQ_EDGE_BFLOAT16),
        penalties_{1.0f, 1.0f, 0.0f, 0.0f} {
    if (kAdjusted && counts_ != nullptr) {
      const awq_edge_sampling& sampling = call.sampling[row];
      penalties_ = penalties_of(sampling.repetition_penalty, sampling.presence_penalty,
                                sampling.frequency_penalty);
    }
  }

  __device__ __forceinline__ float at(int id) const {
    return adjusted(id, value_of_bits(logits_[id], bfloat16_));
  }

  // visit(id, value), as visit_logits.
  template <typename Visit>
  __device__ __forceinline__ void visit(Run run, Visit visit) const {
    visit_logits(logits_, vocab_, bfloat16_, run,
                 [&](int id, float logit) { visit(id, adjusted(id, logit)); });
  }

 private:
  static __device__ __forceinline__ size_t offset(const awq_edge_sampler& call, int row) {
    return static_cast<size_t>(row) * call.vocab;
  }

  __device__ __forceinline__ float adjusted(int id, float logit) const {
    if constexpr (!kAdjusted) return logit;
    if (mask_ != nullptr && !(mask_[id / 32] >> (id % 32) & 1)) return -INFINITY;
    return adjusted_logit(logit, counts_ == nullptr ? 0 : counts_[id],
                          bias_ == nullptr ? 0.0f : bias_[id], penalties_);
  }

  const uint16_t* logits_;
  const uint32_t* counts_;
  const float* bias_;
  const uint32_t* mask_;
  int vocab_;
  bool bfloat16_;
  Penalties penalties_;
};

// The key of a logit in a row whose largest is `maximum`. Equal ones have the largest's key, infinite
// ones too.
__device__ __forceinline__ uint32_t key_of(float value, float maximum) {
  const float difference = value == maximum ? 0.0f : sum(value, -maximum);
  return sort_key(__half_as_ushort(__float2half_rn(difference)));
}

}  // namespace awq_edge
