#include "philox.h"

#include "check.h"

using awq_edge::philox_4x32_10;
using awq_edge::PhiloxWords;

// kat_vectors of Random123, the paper's library: philox4x32, 10 rounds.
static void known_answer(PhiloxWords counter, uint64_t key, PhiloxWords expected) {
  const PhiloxWords actual = philox_4x32_10(counter, key);
  for (int i = 0; i < 4; ++i) CHECK_EQ(actual.words[i], expected.words[i]);
}

TEST(known_answers) {
  known_answer({{0, 0, 0, 0}}, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  known_answer({{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}}, 0xffffffffffffffff,
               {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  known_answer({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0x299f31d0a4093822,
               {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

TEST(random_bits_are_the_first_two_words_of_step_and_row) {
  const PhiloxWords words = philox_4x32_10({{7, 1, 5, 0}}, 99);
  const uint64_t expected = uint64_t(words.words[1]) << 32 | words.words[0];
  CHECK_EQ(awq_edge::random_bits(99, (int64_t(1) << 32) + 7, 5), expected);
  CHECK(awq_edge::random_bits(99, 7, 5) != expected);
  CHECK(awq_edge::random_bits(99, (int64_t(1) << 32) + 7, 6) != expected);
  CHECK(awq_edge::random_bits(98, (int64_t(1) << 32) + 7, 5) != expected);
}
