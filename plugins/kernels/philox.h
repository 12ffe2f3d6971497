// Philox 4x32-10, a counter-based random generator: Salmon, Moraes, Dror and Shaw, "Parallel Random
// Numbers: As Easy as 1, 2, 3", SC 2011. The same counter and key give the same four words
// everywhere, so a draw depends on nothing but what it is for.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace awq_edge {

struct PhiloxWords {
  uint32_t words[4];
};

AWQ_EDGE_HD PhiloxWords philox_4x32_10(PhiloxWords counter, uint64_t key) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  constexpr int kRounds = 10;
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t product0 = kMultiplier0 * counter.words[0];
    const uint64_t product1 = kMultiplier1 * counter.words[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.words[1] ^ key0,
                static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.words[3] ^ key1,
                static_cast<uint32_t>(product0)}};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return counter;
}

// 64 random bits for one row of one step: counter (step, row, 0), key seed.
AWQ_EDGE_HD uint64_t random_bits(uint64_t seed, int64_t step, uint32_t row) {
  const uint64_t position = static_cast<uint64_t>(step);
  const PhiloxWords drawn = philox_4x32_10(
      {{static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), row, 0}}, seed);
  return static_cast<uint64_t>(drawn.words[1]) << 32 | drawn.words[0];
}

}  // namespace awq_edge
