// The steps of sampling one token per row, and the workspace between them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "awq_edge_kernels.h"
#include "sampling_math.h"

namespace awq_edge {

// Keys in bins of 256: what one block scans, a key per thread.
constexpr int kSamplingThreads = 256;
constexpr int kBinKeys = 256;
constexpr int kBins = kKeys / kBinKeys;
// Blocks that may share a row.
constexpr int kMaxRowBlocks = 256;
// One counter each.
constexpr int kMaxSamplingRows = AWQ_EDGE_COUNTER_BYTES / sizeof(uint32_t);

// The place of a row's token: the `rank`-th smallest id of those whose logit has this key.
struct ChosenKey {
  uint32_t key;
  uint32_t rank;
};

// After the counters; all parts start at 16 bytes.
struct SamplingWorkspace {
  uint32_t* counters;    // [rows], zero between calls
  uint64_t* best;        // [rows]: sort_key << 32 | ~id of the largest logit
  ChosenKey* chosen;     // [rows]
  uint64_t* partial;     // [rows, kMaxRowBlocks]: of each block, in two steps
  uint64_t* bin_weight;  // [rows, kBins]
  uint32_t* bin_count;   // [rows, kBins]
  uint32_t* key_count;   // [rows, kKeys]

  SamplingWorkspace(void* memory, int rows) {
    char* next = static_cast<char*>(memory);
    counters = take<uint32_t>(next, kMaxSamplingRows);
    best = take<uint64_t>(next, rows);
    chosen = take<ChosenKey>(next, rows);
    partial = take<uint64_t>(next, static_cast<size_t>(rows) * kMaxRowBlocks);
    bin_weight = take<uint64_t>(next, static_cast<size_t>(rows) * kBins);
    bin_count = take<uint32_t>(next, static_cast<size_t>(rows) * kBins);
    key_count = take<uint32_t>(next, static_cast<size_t>(rows) * kKeys);
    end = next;
  }

  static size_t bytes(int rows) {
    // Addresses from 0 are sizes.
    return reinterpret_cast<size_t>(SamplingWorkspace(nullptr, rows).end);
  }

 private:
  char* end;

  template <typename T>
  static T* take(char*& next, size_t count) {
    T* taken = reinterpret_cast<T*>(next);
    next += (count * sizeof(T) + 15) / 16 * 16;
    return taken;
  }
};

// The arguments of a call, as the kernels take them.
struct SamplingCall {
  const uint16_t* logits;  // [rows, vocab]
  const int64_t* step;
  int64_t* ids;
  int32_t rows, vocab;
  bool bfloat16, greedy;
  int32_t top_k;   // 0: all
  uint64_t top_p;  // fixed_top_p
  float scale;     // log2(e) / temperature
  uint64_t seed;
};

}  // namespace awq_edge
