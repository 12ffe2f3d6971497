// The steps of routed experts, compiled in files of their own.
#pragma once

#include "experts_plan.h"
#include "w4a16_launch.h"
#include "w4a16_rows.cuh"

namespace awq_edge {

// The router's choice of each token, and the tasks that follow from it.
struct RoutingArguments {
  const void* logits;  // activation dtype [m, num_experts]
  int32_t* experts;    // see ExpertsWorkspace
  float* shares;
  int32_t* order;
  ExpertTask* tasks;
  int m, num_experts, top_k;
  bool normalize;
  int most;       // tokens of a task
  int max_tasks;
};

int launch_routing(const RoutingArguments& arguments, int dtype, void* stream);

// y[r, :] = sum over slots, in their order, of shares[r, slot] * outputs[r, slot, :].
int launch_combine(const void* outputs, const float* shares, void* y, int m, int top_k, int size,
                   int dtype, void* stream);

// One linear of all experts. weight: its arrays have the experts as slowest axis. top_k: of the order
// where x is by token, 0 where it is by place. by_pair: where y is by pair, not by place.
struct ExpertLinear {
  const awq_edge_w4a16_weight* weight;
  const void* x;
  void* y;
  const int32_t* order;
  const ExpertTask* tasks;
  int m, max_tasks;
  int top_k;
  bool by_pair;
};

template <typename T>
int launch_expert_linear_as(const ExpertLinear& linear, void* stream);

}  // namespace awq_edge
