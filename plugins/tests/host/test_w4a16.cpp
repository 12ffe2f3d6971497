// The layout of packed weights, the placing of codes into floats, and the division of work.
#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"
#include "w4a16_codes.h"
#include "w4a16_layout.h"
#include "w4a16_plan.h"

using namespace awq_edge;

namespace {

// The number that the bits of a float16 or bfloat16 stand for.
template <typename Codes>
double number(uint32_t bits) {
  const int mantissa = Codes::kMantissa, exponent_bits = 15 - mantissa;
  const int exponent = int(bits >> mantissa & ((1u << exponent_bits) - 1));
  const double fraction = double(bits & ((1u << mantissa) - 1)) / (1 << mantissa);
  const double value = std::ldexp(1 + fraction, exponent - ((1 << (exponent_bits - 1)) - 1));
  return bits >> 15 & 1 ? -value : value;
}

uint32_t half_of(uint32_t pair, int element) { return pair >> (16 * element) & 0xffff; }

// Words of a lane from codes [h][s][r][e], bit for bit as the drawing says.
std::vector<uint32_t> random_words(int bits, uint32_t seed) {
  std::vector<uint32_t> words(lane_words(bits));
  for (uint32_t& word : words) {
    seed = seed * 1664525u + 1013904223u;
    word = seed ^ seed >> 15;
  }
  return words;
}

template <typename Codes, int kBits>
bool codes_come_out(const std::vector<uint32_t>& words) {
  for (int h = 0; h < 2; ++h) {
    for (int s = 0; s < 4; ++s) {
      for (int r = 0; r < 4; ++r) {
        const int position = magic_position<Codes, kBits>(s, r);
        const uint32_t pair = magic_pair<Codes, kBits>(&words[kBits * h], s, r);
        for (int e = 0; e < 2; ++e) {
          const uint32_t code = extract_code(kBits, words.data(), h, s, r, e);
          for (uint32_t zero = 0; zero < 1u << kBits; ++zero) {
            const double value =
                number<Codes>(half_of(pair, e)) *
                    number<Codes>(half_of(inverse_power<Codes>(position), e)) +
                number<Codes>(half_of(zero_offset<Codes>(zero, position), e));
            if (value != double(code) - double(zero)) return false;
          }
        }
      }
    }
  }
  return true;
}

}  // namespace

TEST(eight_neighbouring_channels_of_a_row_are_words_of_one_lane) {
  for (int bits : {4, 8}) {
    const std::vector<uint32_t> words = random_words(bits, 7);
    for (int lane = 0; lane < kLanes; ++lane)
      for (int h = 0; h < 2; ++h)
        for (int s = 0; s < 4; ++s)
          for (int r = 0; r < 4; ++r)
            for (int e = 0; e < 2; ++e) {
              const int channel = fragment_channel(lane, h, s, r, e);
              const RowChunk chunk = row_chunk(bits, fragment_row(lane, r), channel / 8 * 8);
              CHECK_EQ(chunk.lane, lane);
              // They lie behind each other in the block, so that one load has them all.
              for (int w = 1; w < bits / 2; ++w)
                CHECK_EQ(word_index(bits, lane, chunk.word + w),
                         word_index(bits, lane, chunk.word) + w);
              CHECK_EQ(chunk_code(bits, &words[chunk.word], chunk, channel % 8),
                       extract_code(bits, words.data(), h, s, r, e));
            }
  }
}

TEST(every_code_minus_every_zero_point_is_exact) {
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    CHECK((codes_come_out<Float16Codes, 4>(random_words(4, seed))));
    CHECK((codes_come_out<BFloat16Codes, 4>(random_words(4, seed))));
    CHECK((codes_come_out<Float16Codes, 3>(random_words(3, seed))));
    CHECK((codes_come_out<BFloat16Codes, 3>(random_words(3, seed))));
  }
}

// The value of a float16 subnormal, in units of 2^-24, is its bits.
TEST(four_bit_codes_are_subnormals_as_they_lie) {
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    const std::vector<uint32_t> words = random_words(4, seed);
    for (int h = 0; h < 2; ++h) {
      for (int s = 0; s < 4; ++s) {
        for (int r = 0; r < 4; ++r) {
          const uint32_t pair = subnormal_pair(&words[4 * h], s, r);
          for (int e = 0; e < 2; ++e) {
            const uint32_t code = extract_code(4, words.data(), h, s, r, e);
            CHECK_EQ(half_of(pair, e), fragment_row(0, r) == 8 ? 16 * code : code);
          }
        }
      }
    }
  }
}

TEST(eight_bit_zero_points_are_exact_in_float16) {
  for (uint32_t zero = 0; zero < 256; ++zero) {
    CHECK_EQ(number<Float16Codes>(half_of(zero_offset<Float16Codes>(zero, 0), 1)), -1024.0 - zero);
  }
}

TEST(a_block_has_every_row_and_channel_once) {
  std::vector<int> seen(kTileRows * kBlockChannels, 0);
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int h = 0; h < 2; ++h) {
      for (int s = 0; s < 4; ++s) {
        for (int r = 0; r < 4; ++r) {
          for (int e = 0; e < 2; ++e) {
            const int row = fragment_row(lane, r), channel = fragment_channel(lane, h, s, r, e);
            // A step stays within 32 channels, the smallest group.
            CHECK_EQ(channel / 32, 2 * h + s / 2);
            ++seen[row * kBlockChannels + channel];
          }
        }
      }
    }
  }
  for (int count : seen) CHECK_EQ(count, 1);
}

TEST(the_words_of_a_block_belong_to_one_lane_each) {
  for (int bits : {3, 4, 8}) {
    std::vector<int> seen(block_words(bits), 0);
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int w = 0; w < lane_words(bits); ++w) ++seen[word_index(bits, lane, w)];
    }
    for (int count : seen) CHECK_EQ(count, 1);
  }
}

TEST(three_bits_use_every_bit_once) {
  for (int word = 0; word < 6; ++word) {
    for (int bit = 0; bit < 32; ++bit) {
      std::vector<uint32_t> words(6, 0);
      words[word] = 1u << bit;
      int places = 0;
      for (int h = 0; h < 2; ++h) {
        for (int s = 0; s < 4; ++s) {
          for (int r = 0; r < 4; ++r) {
            for (int e = 0; e < 2; ++e) places += extract_code(3, words.data(), h, s, r, e) != 0;
          }
        }
      }
      CHECK_EQ(places, 1);
    }
  }
}

TEST(zero_points_of_all_rows) {
  for (int bits : {3, 4, 8}) {
    for (int row = 0; row < kTileRows; ++row) {
      uint32_t words[4] = {};
      const int g = row % 8, high = row / 8;
      const uint32_t value = (1u << bits) - 1;
      uint8_t octets[16] = {};
      if (bits == 8) {
        octets[2 * g + high] = uint8_t(value);
      } else {
        octets[g] = uint8_t(value << (4 * high));
      }
      std::memcpy(words, octets, sizeof words);
      for (int other = 0; other < kTileRows; ++other) {
        CHECK_EQ(extract_zero(bits, words, other), other == row ? value : 0u);
      }
    }
  }
}

TEST(a_decode_plan_covers_all_tiles_within_shared_memory) {
  const Machine machines[] = {{16, 167936}, {8, 167936}, {24, 101376}, {132, 232448}};
  for (const Machine& machine : machines) {
    for (int bits : {3, 4, 8}) {
      for (int tiles : {1, 3, 64, 160, 256, 257, 768, 1376, 2000, 9496}) {
        for (int blocks : {1, 2, 20, 32, 86, 112}) {
          for (int m : {1, 8, 9, 16}) {
            const DecodePlan p = decode_plan(m, tiles, blocks, bits, machine, TacticFields{});
            CHECK(p.tile_groups * p.tiles << p.row_shift >= tiles);
            CHECK((p.tile_groups - 1) * p.tiles << p.row_shift < tiles);
            CHECK(8 * p.token_tiles >= m);
            CHECK(p.splits >= 1 && p.splits <= blocks);
            CHECK(p.warps >= 1 && p.warps <= 16 && p.warps >> p.row_shift << p.row_shift == p.warps);
            CHECK(decode_shared_bytes(bits, p) <= size_t(machine.shared_bytes));
            CHECK((p.splits > 1) == (p.partial_floats > 0));
          }
        }
      }
    }
  }
}

TEST(a_gemm_plan_covers_all_rows_of_x) {
  for (int m : {17, 32, 33, 64, 65, 128, 129, 4096, 65535}) {
    for (int tiles : {1, 8, 256, 1376}) {
      for (int group_size : {32, 128}) {
        const Machine machine{132, 232448};
        const GemmPlan p = gemm_plan(m, tiles, 32, group_size, machine, TacticFields{});
        const int tokens = 8 * p.token_tiles * p.warps_along_m;
        CHECK(p.token_blocks * tokens >= m);
        CHECK((p.token_blocks - 1) * tokens < m);
        CHECK(p.row_blocks * 8 >= tiles);
        CHECK(p.splits >= 1 && p.splits <= 32);
        CHECK(group_size == 128 || p.token_tiles != kWideTokenTiles);
      }
    }
  }
}
