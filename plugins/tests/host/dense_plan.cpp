#include "dense_plan.h"

#include <set>

#include "check.h"

using namespace awq_edge;

TEST(a_tile_has_each_chunk_once_and_no_bank_twice) {
  std::set<int> places;
  for (int row = 0; row < kDenseGemmRows; ++row)
    for (int chunk = 0; chunk < kDenseGemmChannels / 8; ++chunk)
      places.insert(dense_chunk_offset(row, chunk));
  CHECK_EQ(places.size(), size_t(kDenseGemmRows * kDenseGemmChannels / 8));
  CHECK_EQ(*places.rbegin(), kDenseGemmRows * kDenseGemmChannels * 2 - 16);
  // Eight lanes read 16 bytes of four chunks of two rows at a time.
  for (int row = 0; row < kDenseGemmRows; row += 2)
    for (int part = 0; part < kDenseGemmChannels / 32; ++part) {
      std::set<int> groups;
      for (int lane = 0; lane < 8; ++lane)
        groups.insert(dense_chunk_offset(row + lane / 4, 4 * part + lane % 4) / 16 % 8);
      CHECK_EQ(groups.size(), size_t{8});
    }
}

TEST(channels_are_shared_where_rows_are_few) {
  CHECK_EQ(dense_channel_shift(128256, 4096, 132), 0);
  CHECK_EQ(dense_channel_shift(128, 4096, 132), 3);
  // No warp without a turn of its own.
  CHECK_EQ(dense_channel_shift(8, 128, 132), 0);
  CHECK_EQ(dense_channel_shift(8, 256, 132), 1);
  for (int n = 1; n < 40000; n = n * 3 + 1)
    for (int k = 8; k < 9000; k += 504) {
      const int shift = dense_channel_shift(n, k, 16);
      CHECK(shift >= 0 && (1 << shift) <= kDenseWarps);
      CHECK(shift == 0 || (kDenseChannels << (shift - 1)) < k);
    }
}
