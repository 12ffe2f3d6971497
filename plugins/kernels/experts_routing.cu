// Routed experts: which experts each token goes to, in what order their tokens are worked on, and the
// sum of what they give. Counts and places are integers, so nothing depends on timing.
#include "async_copy.cuh"
#include "block_sum.cuh"
#include "element.cuh"
#include "experts.h"
#include "float_order.h"
#include "launch.h"
#include "row_grid.h"
#include "vector.cuh"

namespace awq_edge {
namespace {

constexpr int kRoutingThreads = 256;
constexpr int kRoutingWarps = kRoutingThreads / kWarpSize;
constexpr int kLogitsOfLane = kMaxExperts / kWarpSize;

// A warp sorts out one token: its top_k experts, of equal ones the smaller, and their shares of the
// softmax over all, or over these. Lane 0 writes.
template <typename T>
__device__ void choose_experts(const RoutingArguments& a, int token, int32_t* experts,
                               float* shares) {
  const int lane = threadIdx.x % kWarpSize;
  const T* logits = static_cast<const T*>(a.logits) + static_cast<size_t>(token) * a.num_experts;
  uint64_t keys[kLogitsOfLane];  // 0: none, or taken already
#pragma unroll
  for (int i = 0; i < kLogitsOfLane; ++i) {
    const int expert = lane + kWarpSize * i;
    keys[i] = expert < a.num_experts ? ranked(to_float(logits[expert]), expert) : 0;
  }
  float largest = 0.0f, sum = 0.0f, of_slot = 0.0f;
  int expert_of_slot = 0;
  for (int slot = 0; slot < a.top_k; ++slot) {
    uint64_t best = 0;
#pragma unroll
    for (int i = 0; i < kLogitsOfLane; ++i) best = keys[i] > best ? keys[i] : best;
#pragma unroll
    for (int step = kWarpSize / 2; step > 0; step /= 2) {
      const uint64_t other = __shfl_xor_sync(kAllLanes, best, step);
      best = other > best ? other : best;
    }
    const int expert = static_cast<int>(number_of(best));
#pragma unroll
    for (int i = 0; i < kLogitsOfLane; ++i)
      if (keys[i] == best) keys[i] = 0;
    const float logit = to_float(logits[expert]);
    if (slot == 0) largest = logit;
    const float weight = expf(logit - largest);
    sum += weight;
    if (lane == slot) of_slot = weight, expert_of_slot = expert;
  }
  if (!a.normalize) {  // in an order of its own: lane by lane
    sum = 0.0f;
    for (int expert = lane; expert < a.num_experts; expert += kWarpSize)
      sum += expf(to_float(logits[expert]) - largest);
#pragma unroll
    for (int step = kWarpSize / 2; step > 0; step /= 2)
      sum += __shfl_xor_sync(kAllLanes, sum, step);
  }
  if (lane >= a.top_k) return;
  experts[lane] = expert_of_slot;
  if (shares != nullptr) shares[lane] = of_slot / sum;
}

template <typename T>
__global__ void __launch_bounds__(kRoutingThreads) choose_kernel(const RoutingArguments a) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int token = blockIdx.x * kRoutingWarps + threadIdx.x / kWarpSize;
  if (token < a.m)
    choose_experts<T>(a, token, a.experts + static_cast<size_t>(token) * a.top_k,
                      a.shares + static_cast<size_t>(token) * a.top_k);
}

// Of an expert among all pairs: where its own begin, and the tasks before its.
struct ExpertPlace {
  int first, count, first_task, tasks_of_all;
};

__device__ ExpertPlace place_of(const RoutingArguments& a, const int32_t* experts, int expert) {
  __shared__ int counts[kMaxExperts];
  const int pairs = a.m * a.top_k;
  for (int i = threadIdx.x; i < a.num_experts; i += blockDim.x) counts[i] = 0;
  __syncthreads();
  for (int pair = threadIdx.x; pair < pairs; pair += blockDim.x)
    atomicAdd(&counts[experts[pair]], 1);
  __syncthreads();
  int first = 0, first_task = 0, tasks = 0;
  for (int i = threadIdx.x; i < a.num_experts; i += blockDim.x) {
    const int of_expert = tasks_of(counts[i], a.most);
    tasks += of_expert;
    if (i < expert) first += counts[i], first_task += of_expert;
  }
  return {block_sum(first), counts[expert], block_sum(first_task), block_sum(tasks)};
}

// One block an expert: its tasks, and its pairs in ascending order. kFew: every block chooses the
// experts itself, of up to kFewTokens tokens, so that one launch does.
template <typename T, bool kFew>
__global__ void __launch_bounds__(kRoutingThreads) order_kernel(const RoutingArguments a) {
  __shared__ int32_t chosen[kFew ? kFewTokens * kMaxTopK : 1];
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int expert = blockIdx.x, pairs = a.m * a.top_k;
  if constexpr (kFew) {
    for (int token = threadIdx.x / kWarpSize; token < a.m; token += kRoutingWarps)
      choose_experts<T>(a, token, chosen + token * a.top_k,
                        expert == 0 ? a.shares + token * a.top_k : nullptr);
    __syncthreads();
  }
  const int32_t* experts = kFew ? chosen : a.experts;
  const ExpertPlace place = place_of(a, experts, expert);
  for (int i = threadIdx.x; i < tasks_of(place.count, a.most); i += blockDim.x) {
    const int left = place.count - i * a.most;
    a.tasks[place.first_task + i] = {expert, place.first + i * a.most, left < a.most ? left : a.most,
                                     0};
  }
  if (expert == 0)
    for (int i = place.tasks_of_all + threadIdx.x; i < a.max_tasks; i += blockDim.x)
      a.tasks[i] = {0, 0, 0, 0};
  int next = place.first;
  for (int begin = 0; begin < pairs && next < place.first + place.count; begin += blockDim.x) {
    const int pair = begin + threadIdx.x;
    const int own = pair < pairs && experts[pair] == expert;
    int all;
    const int before = block_exclusive_sum(own, &all);
    if (own) a.order[next + before] = pair;
    next += all;
  }
}

template <typename T>
int launch_routing_as(const RoutingArguments& a, void* stream) {
  const char* what = "awq_edge_experts: routing";
  const dim3 block(kRoutingThreads), per_expert(a.num_experts);
  if (a.m <= kFewTokens)
    return launch(what, order_kernel<T, true>, per_expert, block, 0, stream, a);
  const dim3 grid((a.m + kRoutingWarps - 1) / kRoutingWarps);
  const int status = launch(what, choose_kernel<T>, grid, block, 0, stream, a);
  if (status != AWQ_EDGE_OK) return status;
  return launch(what, order_kernel<T, false>, per_expert, block, 0, stream, a);
}

template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    combine_kernel(const T* outputs, const float* shares, T* y, int m, int top_k, int size) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int vector = blockIdx.x * blockDim.x + threadIdx.x;
  if (vector >= size / kVectorElements) return;
  for (int row = blockIdx.y; row < m; row += gridDim.y) {
    float sums[kVectorElements] = {};
    for (int slot = 0; slot < top_k; ++slot) {
      const size_t pair = static_cast<size_t>(row) * top_k + slot;
      const float share = shares[pair];
      const auto values = load_vector<kVectorElements>(outputs + pair * size, vector);
#pragma unroll
      for (int i = 0; i < kVectorElements; ++i)
        sums[i] = fmaf(share, to_float(values.values[i]), sums[i]);
    }
    Vector<T, kVectorElements> rounded;
#pragma unroll
    for (int i = 0; i < kVectorElements; ++i) rounded.values[i] = from_float<T>(sums[i]);
    store_vector<kVectorElements>(y + static_cast<size_t>(row) * size, vector, rounded);
  }
}

template <typename T>
int launch_combine_as(const void* outputs, const float* shares, void* y, int m, int top_k,
                      int size, void* stream) {
  const RowGrid shape(m, size / kVectorElements);
  return launch("awq_edge_experts: sum", combine_kernel<T>, shape.grid, shape.block, 0, stream,
                static_cast<const T*>(outputs), shares, static_cast<T*>(y), m, top_k, size);
}

}  // namespace

int launch_routing(const RoutingArguments& arguments, int dtype, void* stream) {
  return dtype == AWQ_EDGE_FLOAT16 ? launch_routing_as<__half>(arguments, stream)
                                   : launch_routing_as<__nv_bfloat16>(arguments, stream);
}

int launch_combine(const void* outputs, const float* shares, void* y, int m, int top_k, int size,
                   int dtype, void* stream) {
  return dtype == AWQ_EDGE_FLOAT16
             ? launch_combine_as<__half>(outputs, shares, y, m, top_k, size, stream)
             : launch_combine_as<__nv_bfloat16>(outputs, shares, y, m, top_k, size, stream);
}

}  // namespace awq_edge
