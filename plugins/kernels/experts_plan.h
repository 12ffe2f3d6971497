// The division of routed experts' work, and the workspace between its steps: pure arithmetic.
#pragma once

#include <cstddef>
#include <cstdint>

#include "awq_edge_kernels.h"
#include "host_device.h"

namespace awq_edge {

// A warp keeps the router's logits of a token in registers.
constexpr int kMaxExperts = 512;
constexpr int kMaxTopK = 16;
// Up to this many tokens an expert's are one task of the decode kernel.
constexpr int kFewTokens = AWQ_EDGE_DECODE_ROWS;
// Tokens of a task of the GEMM kernel.
constexpr int kExpertGemmTokens = 64;

AWQ_EDGE_HD int task_tokens(int m) { return m <= kFewTokens ? kFewTokens : kExpertGemmTokens; }

AWQ_EDGE_HD int tasks_of(int tokens, int most) { return (tokens + most - 1) / most; }

// How many tasks there are at most: each expert has one that is not full at most, and no more than
// there are tokens.
AWQ_EDGE_HD int max_tasks(int m, int top_k, int num_experts) {
  const int pairs = m * top_k, partial = pairs < num_experts ? pairs : num_experts;
  return m <= kFewTokens ? partial : pairs / task_tokens(m) + partial;
}

// Places in the workspace, in bytes; all multiples of 256.
struct ExpertsWorkspace {
  size_t experts;  // int32 [m, top_k]: of each token
  size_t shares;   // float32 [m, top_k]
  size_t order;    // int32 [m * top_k]: pairs of token and slot, by expert
  size_t tasks;    // ExpertTask [max_tasks]
  size_t hidden;   // activation dtype [m * top_k, intermediate], by place in the order
  size_t outputs;  // activation dtype [m * top_k, size], by pair
  size_t end;

  ExpertsWorkspace(int m, int top_k, int num_experts, int intermediate, int size) {
    const size_t pairs = size_t(m) * top_k;
    size_t next = AWQ_EDGE_COUNTER_BYTES;
    const auto take = [&next](size_t bytes) {
      const size_t place = next;
      next += (bytes + 255) / 256 * 256;
      return place;
    };
    experts = take(pairs * sizeof(int32_t));
    shares = take(pairs * sizeof(float));
    order = take(pairs * sizeof(int32_t));
    tasks = take(size_t(max_tasks(m, top_k, num_experts)) * 16);
    hidden = take(pairs * intermediate * 2);
    outputs = take(pairs * size * 2);
    end = next;
  }
};

}  // namespace awq_edge
