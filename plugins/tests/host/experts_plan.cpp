#include "experts_plan.h"

#include <random>

#include "check.h"

using namespace awq_edge;

// However tokens fall on experts, their tasks have room.
TEST(tasks_never_exceed_their_list) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 3000; ++trial) {
    const int num_experts = 1 + random() % (trial % 2 ? 8 : kMaxExperts);
    const int top_k = 1 + random() % (num_experts < kMaxTopK ? num_experts : kMaxTopK);
    const int m = 1 + random() % (trial % 3 ? 40 : 700);
    std::vector<int> counts(num_experts);
    // Half of the trials are as uneven as can be: the same experts for every token.
    const int first = random() % num_experts, spread = random() % 2;
    for (int token = 0; token < m; ++token)
      for (int slot = 0; slot < top_k; ++slot)
        ++counts[(first + slot + (spread ? token : 0)) % num_experts];
    int tasks = 0, tokens = 0;
    for (const int count : counts) {
      tasks += tasks_of(count, task_tokens(m));
      tokens += count;
      if (m <= kFewTokens) CHECK(tasks_of(count, task_tokens(m)) <= 1);
    }
    CHECK_EQ(tokens, m * top_k);
    CHECK(tasks <= max_tasks(m, top_k, num_experts));
  }
}

TEST(a_workspace_serves_fewer_tokens) {
  for (const int num_experts : {1, 8, 16, 128, 512})
    for (const int top_k : {1, 2, 8, 16}) {
      if (top_k > num_experts) continue;
      size_t before = AWQ_EDGE_COUNTER_BYTES;
      for (int m = 1; m < 200; ++m) {
        const ExpertsWorkspace places(m, top_k, num_experts, 32, 32);
        for (const size_t place : {places.experts, places.shares, places.order, places.tasks,
                                   places.hidden, places.outputs, places.end})
          CHECK_EQ(place % 256, size_t{0});
        CHECK(places.end > before || m > 1);
        CHECK(places.end >= before);
        before = places.end;
      }
    }
}
