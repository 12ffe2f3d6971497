// Which rows of a call belong to which sequence: as many each, or from a table where sequences have
// different numbers of new tokens.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace awq_edge {

// Rows first .. first + count - 1 are the new tokens of a sequence.
struct SequenceRows {
  int64_t first;
  int count;
};

// row_begin: [batch + 1], or null: `tokens` rows each. tokens: the most that any sequence has; nobody
// has checked the table, and a sequence that has more loses them.
AWQ_EDGE_HD SequenceRows sequence_rows(const int64_t* row_begin, int sequence, int tokens) {
  if (row_begin == nullptr) return {static_cast<int64_t>(sequence) * tokens, tokens};
  const int64_t first = row_begin[sequence], count = row_begin[sequence + 1] - first;
  return {first, count < 0 ? 0 : count < tokens ? static_cast<int>(count) : tokens};
}

}  // namespace awq_edge
