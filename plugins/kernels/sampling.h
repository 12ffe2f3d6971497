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
static_assert(kMaxRowBlocks <= kSamplingThreads, "one thread merges one block's result");
// One counter each.
constexpr int kMaxSamplingRows = AWQ_EDGE_COUNTER_BYTES / sizeof(uint32_t);

// Arrays one behind the other in a workspace, each from a multiple of 16 bytes on.
class Places {
 public:
  explicit Places(void* memory) : next_(static_cast<char*>(memory)) {}

  template <typename T>
  T* take(size_t count) {
    T* taken = reinterpret_cast<T*>(next_);
    next_ += (count * sizeof(T) + 15) / 16 * 16;
    return taken;
  }
  // From address 0 on, addresses are sizes.
  size_t end() const { return reinterpret_cast<size_t>(next_); }

 private:
  char* next_;
};

// The place of a row's token: the `rank`-th smallest id of those whose logit has this key.
struct ChosenKey {
  uint32_t key;
  uint32_t rank;
};

// A row's parameters as the arithmetic takes them, made once: doubles are slow on small devices.
struct RowSettings {
  float scale;
  uint64_t top_p;
  uint64_t min_p;
};

struct SamplingWorkspace {
  uint32_t* counters;    // [rows], zero between calls
  RowSettings* settings; // [rows]
  uint64_t* best;        // [rows]: ranked() of the largest logit and its id
  ChosenKey* chosen;     // [rows]
  uint64_t* partial;     // [rows, kMaxRowBlocks]: of each block, in two steps
  uint64_t* bin_weight;  // [rows, kBins]
  uint32_t* bin_count;   // [rows, kBins]
  int32_t* bin_below;    // [rows, kBins]: the largest key of the bin that min_p drops; -1: none
  uint32_t* key_count;   // [rows, kKeys]
  size_t bytes;

  SamplingWorkspace(void* memory, int rows) {
    const size_t count = rows;
    Places places(memory);
    counters = places.take<uint32_t>(kMaxSamplingRows);
    settings = places.take<RowSettings>(count);
    best = places.take<uint64_t>(count);
    chosen = places.take<ChosenKey>(count);
    partial = places.take<uint64_t>(count * kMaxRowBlocks);
    bin_weight = places.take<uint64_t>(count * kBins);
    bin_count = places.take<uint32_t>(count * kBins);
    bin_below = places.take<int32_t>(count * kBins);
    key_count = places.take<uint32_t>(count * kKeys);
    bytes = places.end() - reinterpret_cast<size_t>(memory);
  }
};

// Blocks that share a row: enough for every multiprocessor, none with less than a vector a thread.
inline int blocks_of_row(int rows, int vocab, int sm_count) {
  const int useful = (vocab - 1) / (kSamplingThreads * 8) + 1;
  const int wanted = (2 * sm_count - 1) / rows + 1;
  const int blocks = useful < wanted ? useful : wanted;
  return blocks < kMaxRowBlocks ? blocks : kMaxRowBlocks;
}

}  // namespace awq_edge
