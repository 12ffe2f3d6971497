#include "sequence_rows.h"

#include "check.h"

using namespace awq_edge;

TEST(without_a_table_every_sequence_has_as_many_rows) {
  for (int sequence = 0; sequence < 4; ++sequence) {
    const SequenceRows rows = sequence_rows(nullptr, sequence, 7);
    CHECK_EQ(rows.first, int64_t(7) * sequence);
    CHECK_EQ(rows.count, 7);
  }
}

TEST(a_table_gives_each_its_own) {
  const int64_t begin[] = {0, 1, 1, 9};
  const int counts[] = {1, 0, 8};
  for (int sequence = 0; sequence < 3; ++sequence) {
    const SequenceRows rows = sequence_rows(begin, sequence, 8);
    CHECK_EQ(rows.first, begin[sequence]);
    CHECK_EQ(rows.count, counts[sequence]);
  }
}

TEST(a_wrong_table_leads_to_no_row_of_others) {
  const int64_t begin[] = {5, 3, int64_t(1) << 40};
  CHECK_EQ(sequence_rows(begin, 0, 8).count, 0);
  CHECK_EQ(sequence_rows(begin, 1, 8).count, 8);
}
