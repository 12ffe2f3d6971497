// The places of attention's values: rotary pairs, swizzle, fragments, int8 codes as floating point.
#include "attention_fragments.h"

#include <cmath>
#include <set>
#include <vector>

#include "check.h"

using namespace awq_edge;

namespace {

constexpr int kHeadSizes[] = {32, 64, 96, 128, 256};

double float16_value(uint32_t bits) {
  const int exponent = bits >> 10 & 31;
  return (bits >> 15 ? -1 : 1) * std::ldexp(1024 + (bits & 1023), exponent - 25);
}

double bfloat16_value(uint32_t bits) {
  const int exponent = bits >> 7 & 255;
  return (bits >> 15 ? -1 : 1) * std::ldexp(128 + (bits & 127), exponent - 134);
}

// Groups of four banks that 8 rows of one column of chunks touch: 8 of them, or ldmatrix waits.
template <int kHeadSize>
void check_swizzle() {
  std::set<int> places;
  for (int row = 0; row < 64; ++row)
    for (int channel = 0; channel < kHeadSize; ++channel) {
      const int place = swizzled<kHeadSize>(row, channel);
      places.insert(place);
      CHECK_EQ(place / kHeadSize, row);
      CHECK_EQ(place % 8, channel % 8);
    }
  CHECK_EQ(places.size(), size_t{64 * kHeadSize});
  for (int row = 0; row < 64; row += 8)
    for (int chunk = 0; chunk < kHeadSize / 8; ++chunk) {
      std::set<int> groups;
      for (int i = 0; i < 8; ++i) groups.insert(swizzled<kHeadSize>(row + i, 8 * chunk) / 8 % 8);
      CHECK_EQ(groups.size(), size_t{8});
    }
  for (int row = 0; row < 64; ++row)
    for (int chunk = 0; chunk < kHeadSize / 8; chunk += 2)
      for (int odd = 0; odd < 2; ++odd)
        CHECK_EQ(static_cast<int>(swizzled_chunk_bytes<kHeadSize>(
                     chunk, swizzle_lane_bits<kHeadSize>(row, odd))) +
                     2 * kHeadSize * row,
                 2 * swizzled<kHeadSize>(row, 8 * (chunk + odd)));
}

// A quarter of a warp reads 16 bytes of two rows of queries at a time: no bank twice.
template <int kHeadSize>
void check_query_rows() {
  for (int g = 0; g < 8; g += 2)
    for (int chunk = 0; chunk < kHeadSize / 32; ++chunk) {
      std::set<int> groups;
      for (int lane = 0; lane < 8; ++lane)
        groups.insert(((g + lane / 4) * query_stride<kHeadSize>() +
                       key_channel(lane % 4, chunk)) / 8 % 8);
      CHECK_EQ(groups.size(), size_t{8});
    }
}

// Scores^T = K Q^T over the words of the lanes, each channel once; y^T by channel, each once.
template <int kHeadSize>
void check_channels() {
  std::multiset<int> summed, output, loaded;
  for (int t = 0; t < 4; ++t)
    for (int chunk = 0; chunk < kHeadSize / 32; ++chunk)
      for (int i = 0; i < 8; ++i) summed.insert(key_channel(t, chunk) + i);
  for (int g = 0; g < 8; ++g) {
    for (int tile = 0; tile < kHeadSize / 16; ++tile)
      for (int i = 0; i < 2; ++i) output.insert(output_channel<kHeadSize>(g, tile) + i);
    for (int chunk = 0; chunk < (kHeadSize + 63) / 64; ++chunk)
      for (int i = 0; i < (chunk < kHeadSize / 64 ? 8 : 4); ++i)
        loaded.insert(value_channel<kHeadSize>(g, chunk) + i);
  }
  std::multiset<int> all;
  for (int channel = 0; channel < kHeadSize; ++channel) all.insert(channel);
  CHECK(summed == all);
  CHECK(output == all);
  CHECK(loaded == all);
  // Tile 4 c + e takes word e of what lane g has loaded of chunk c.
  for (int g = 0; g < 8; ++g)
    for (int tile = 0; tile < kHeadSize / 16; ++tile)
      CHECK_EQ(output_channel<kHeadSize>(g, tile),
               value_channel<kHeadSize>(g, tile / 4) + 2 * (tile % 4));
}

}  // namespace

TEST(pairs_hold_each_channel_once_and_rotate_the_first) {
  for (int head_size : kHeadSizes)
    for (int rotary_size = 0; rotary_size <= head_size; rotary_size += 2) {
      std::set<int> channels;
      for (int pair = 0; pair < head_size / 2; ++pair) {
        const ChannelPair channels_of_pair = channel_pair(pair, rotary_size);
        channels.insert(channels_of_pair.first);
        channels.insert(channels_of_pair.second);
        const bool rotates = pair < rotary_size / 2;
        CHECK_EQ(channels_of_pair.first < rotary_size, rotates);
        if (rotates) CHECK_EQ(channels_of_pair.second - channels_of_pair.first, rotary_size / 2);
      }
      CHECK_EQ(channels.size(), static_cast<size_t>(head_size));
      CHECK_EQ(*channels.rbegin(), head_size - 1);
    }
}

TEST(swizzle) {
  check_swizzle<32>();
  check_swizzle<64>();
  check_swizzle<96>();
  check_swizzle<128>();
  check_swizzle<256>();
}

TEST(rows_of_queries) {
  check_query_rows<32>();
  check_query_rows<64>();
  check_query_rows<96>();
  check_query_rows<128>();
  check_query_rows<256>();
}

TEST(fragment_channels) {
  check_channels<32>();
  check_channels<64>();
  check_channels<96>();
  check_channels<128>();
  check_channels<256>();
}

TEST(fragment_keys) {
  std::set<int> keys;
  for (int t = 0; t < 4; ++t) {
    // Rows 0, 1 are the mma's k = 2t, 2t + 1 and rows 2, 3 its k = 2t + 8, 2t + 9.
    CHECK_EQ(value_key(t, 0), 2 * t);
    CHECK_EQ(value_key(t, 1), 2 * t + 1);
    CHECK_EQ(value_key(t, 2), 2 * t + 8);
    CHECK_EQ(value_key(t, 3), 2 * t + 9);
    for (int row = 0; row < 4; ++row) keys.insert(value_key(t, row));
  }
  CHECK_EQ(keys.size(), size_t{16});
}

TEST(every_code_as_floating_point) {
  for (int first = -128; first < 128; ++first)
    for (int second : {-128, -127, -1, 0, 1, 127}) {
      const uint32_t codes = (first & 255) | (second & 255) << 16;
      const CodeBits half = float16_code_bits(codes), brain = bfloat16_code_bits(codes);
      CHECK_EQ(float16_value(half.minuend & 0xffff) - float16_value(half.subtrahend & 0xffff),
               first);
      CHECK_EQ(float16_value(half.minuend >> 16) - float16_value(half.subtrahend >> 16), second);
      CHECK_EQ(bfloat16_value(brain.minuend & 0xffff) - bfloat16_value(brain.subtrahend & 0xffff),
               first);
      CHECK_EQ(bfloat16_value(brain.minuend >> 16) - bfloat16_value(brain.subtrahend >> 16),
               second);
    }
}

TEST(codes_are_the_nearest) {
  CHECK_EQ(int8_code(1.0f, 127.0f), 127);
  CHECK_EQ(int8_code(-1.0f, 127.0f), -127);
  CHECK_EQ(int8_code(1.0f, 1000.0f), 127);
  CHECK_EQ(int8_code(2.5f, 1.0f), 2);
  CHECK_EQ(int8_code(3.5f, 1.0f), 4);
  CHECK_EQ(int8_code(-2.5f, 1.0f), -2);
  CHECK_EQ(int8_code(0.0f, 0.0f), 0);
  for (int i = -1270; i <= 1270; ++i)
    CHECK_EQ(int8_code(i / 10.0f, 1.0f), static_cast<int>(std::nearbyint(i / 10.0f)));
}
