// The entry points of routed experts: checks, workspace, and the steps in their order.
//
//     logits ─ choice and order ─┐
//     x ─────────────────────────┴─ gate and up ─ hidden ─ down ─ outputs ─ sum by share ─ y
//                                   [places in the order]     [pairs]
#include "experts.h"

#include "checks.h"
#include "element.cuh"

namespace awq_edge {

extern template int launch_expert_linear_as<__half>(const ExpertLinear&, void*);
extern template int launch_expert_linear_as<__nv_bfloat16>(const ExpertLinear&, void*);

namespace {

int check_experts(const awq_edge_w4a16_weight* gate_up, const awq_edge_w4a16_weight* down,
                  const awq_edge_routing* routing, int m, bool pointers) {
  int status = check_weight(gate_up, pointers);
  if (status == AWQ_EDGE_OK) status = check_weight(down, pointers);
  if (status != AWQ_EDGE_OK) return status;
  AWQ_EDGE_REQUIRE(routing != nullptr, "experts: routing is null");
  AWQ_EDGE_REQUIRE(routing->num_experts >= 1 && routing->num_experts <= kMaxExperts,
                   "experts: num_experts is %d; it must be 1 to %d", routing->num_experts,
                   kMaxExperts);
  const int most = routing->num_experts < kMaxTopK ? routing->num_experts : kMaxTopK;
  AWQ_EDGE_REQUIRE(routing->top_k >= 1 && routing->top_k <= most,
                   "experts: top_k is %d; it must be 1 to %d", routing->top_k, most);
  AWQ_EDGE_REQUIRE(epilogue_of(gate_up->epilogue).paired && !epilogue_of(down->epilogue).paired,
                   "experts: gate_up has epilogue %d and down %d; the first must be of a pair, the "
                   "second not",
                   gate_up->epilogue, down->epilogue);
  AWQ_EDGE_REQUIRE(gate_up->dtype == down->dtype, "experts: gate_up has dtype %d and down %d",
                   gate_up->dtype, down->dtype);
  AWQ_EDGE_REQUIRE(down->in_features == gate_up->out_features / 2 &&
                       down->out_features == gate_up->in_features,
                   "experts: gate_up is [%d, %d] and down [%d, %d]; [2 i, n] and [n, i] fit each "
                   "other",
                   gate_up->out_features, gate_up->in_features, down->out_features,
                   down->in_features);
  AWQ_EDGE_REQUIRE(m >= 1 && m <= AWQ_EDGE_MAX_ROWS, "experts: m is %d; it must be 1 to %d", m,
                   AWQ_EDGE_MAX_ROWS);
  return AWQ_EDGE_OK;
}

ExpertsWorkspace workspace_of(const awq_edge_w4a16_weight& down, const awq_edge_routing& routing,
                              int m) {
  return {m, routing.top_k, routing.num_experts, down.in_features, down.out_features};
}

int launch_expert_linear(const ExpertLinear& linear, void* stream) {
  return linear.weight->dtype == AWQ_EDGE_FLOAT16
             ? launch_expert_linear_as<__half>(linear, stream)
             : launch_expert_linear_as<__nv_bfloat16>(linear, stream);
}

}  // namespace
}  // namespace awq_edge

extern "C" {

int awq_edge_experts_workspace(const awq_edge_w4a16_weight* gate_up,
                               const awq_edge_w4a16_weight* down, const awq_edge_routing* routing,
                               int32_t max_m, size_t* bytes) {
  const int status = awq_edge::check_experts(gate_up, down, routing, max_m, false);
  if (status != AWQ_EDGE_OK) return status;
  AWQ_EDGE_REQUIRE(bytes != nullptr, "experts: the result's pointer is null");
  *bytes = awq_edge::workspace_of(*down, *routing, max_m).end;
  return AWQ_EDGE_OK;
}

int awq_edge_experts(const awq_edge_w4a16_weight* gate_up, const awq_edge_w4a16_weight* down,
                     const awq_edge_routing* routing, const void* logits, const void* x, void* y,
                     int32_t m, void* workspace, size_t workspace_bytes, void* stream) {
  int status = awq_edge::check_experts(gate_up, down, routing, m, true);
  if (status != AWQ_EDGE_OK) return status;
  AWQ_EDGE_REQUIRE_ALIGNED(logits, 2);
  AWQ_EDGE_REQUIRE_TENSOR(x);
  AWQ_EDGE_REQUIRE_TENSOR(y);
  const awq_edge::ExpertsWorkspace places = awq_edge::workspace_of(*down, *routing, m);
  if (workspace_bytes < places.end || workspace == nullptr || !awq_edge::is_aligned(workspace)) {
    return awq_edge::fail(AWQ_EDGE_WORKSPACE,
                          "experts: m %d needs a workspace of %zu bytes, aligned to 16; it is %p "
                          "with %zu",
                          m, places.end, workspace, workspace_bytes);
  }
  char* memory = static_cast<char*>(workspace);
  auto* shares = reinterpret_cast<float*>(memory + places.shares);
  auto* order = reinterpret_cast<int32_t*>(memory + places.order);
  auto* tasks = reinterpret_cast<awq_edge::ExpertTask*>(memory + places.tasks);
  void *hidden = memory + places.hidden, *outputs = memory + places.outputs;
  const int top_k = routing->top_k;
  const int max_tasks = awq_edge::max_tasks(m, top_k, routing->num_experts);
  const awq_edge::RoutingArguments choice{logits,
                                          reinterpret_cast<int32_t*>(memory + places.experts),
                                          shares,
                                          order,
                                          tasks,
                                          m,
                                          routing->num_experts,
                                          top_k,
                                          routing->normalize != 0,
                                          awq_edge::task_tokens(m),
                                          max_tasks};
  status = awq_edge::launch_routing(choice, down->dtype, stream);
  if (status != AWQ_EDGE_OK) return status;
  status = awq_edge::launch_expert_linear(
      {gate_up, x, hidden, order, tasks, m, max_tasks, top_k, false}, stream);
  if (status != AWQ_EDGE_OK) return status;
  status = awq_edge::launch_expert_linear(
      {down, hidden, outputs, order, tasks, m, max_tasks, 0, true}, stream);
  if (status != AWQ_EDGE_OK) return status;
  return awq_edge::launch_combine(outputs, shares, y, m, top_k, down->out_features, down->dtype,
                                  stream);
}

}  // extern "C"
