#include "sampling_math.h"

#include <cmath>
#include <random>

#include "check.h"

using namespace awq_edge;

// The value of 16 bits by the definition of the format, independent of key_value's shortcuts.
static double value_by_definition(uint32_t bits, bool bfloat16) {
  const int mantissa_bits = bfloat16 ? 7 : 10, exponent_bits = 15 - mantissa_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = bits >> 15 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

TEST(keys_give_back_every_value_and_sort_like_them) {
  for (const bool bfloat16 : {false, true}) {
    std::vector<double> by_key(kKeys, NAN);
    for (uint32_t bits = 0; bits < kKeys; ++bits) {
      const double value = value_by_definition(bits, bfloat16);
      const uint32_t key = sort_key(bits, bfloat16);
      CHECK(key < uint32_t(kKeys));
      if (std::isnan(value)) {
        CHECK_EQ(key, 0u);
        continue;
      }
      CHECK(key != 0);
      CHECK_EQ(double(key_value(key, bfloat16)), value);
      // Only -0 and +0 share a key.
      if (!std::isnan(by_key[key])) CHECK_EQ(value, 0.0);
      by_key[key] = value;
    }
    double before = -INFINITY;
    for (const double value : by_key) {
      if (std::isnan(value)) continue;
      CHECK(value > before || value == -INFINITY);
      before = value;
    }
    CHECK_EQ(before, INFINITY);
    CHECK(std::isnan(key_value(0, bfloat16)));
  }
}

TEST(weights_are_the_exponential) {
  const double log2e = 1.4426950408889634;
  for (const double temperature : {0.1, 0.7, 1.0, 3.0}) {
    const float scale = float(log2e / temperature);
    const uint32_t maximum = sort_key(0x4d00, false);  // 20
    for (uint32_t key = sort_key(0xfc00, false); key < maximum; ++key) {  // from -infinity
      const double exponent = (double(key_value(key, false)) - 20.0) / temperature;
      const double exact = std::exp2(kWeightBits) * std::exp(exponent);
      const double weight = double(sampling_weight(key, maximum, scale, false));
      // One rounding of x at up to 44 is 2^-19.5 of it in 2^x, one unit is lost below.
      CHECK(std::abs(weight - exact) <= 4e-6 * exact + 1.0);
    }
  }
}

TEST(weights_of_special_values) {
  const uint32_t infinity = sort_key(0x7c00, false), lowest = sort_key(0xfc00, false);
  const uint32_t one = sort_key(0x3c00, false), nan = sort_key(0x7e00, false);
  const uint64_t full = uint64_t(1) << kWeightBits;
  CHECK_EQ(sampling_weight(infinity, infinity, 1.0f, false), full);
  CHECK_EQ(sampling_weight(one, infinity, 1.0f, false), uint64_t(0));
  CHECK_EQ(sampling_weight(lowest, one, 1.0f, false), uint64_t(0));
  CHECK_EQ(sampling_weight(lowest, lowest, 1.0f, false), full);
  CHECK_EQ(sampling_weight(nan, one, 1.0f, false), uint64_t(0));
  CHECK_EQ(sampling_weight(nan, nan, 1.0f, false), full);
  // The coldest temperature: an infinite scale.
  CHECK_EQ(sampling_weight(one, one, INFINITY, false), full);
  CHECK_EQ(sampling_weight(one - 1, one, INFINITY, false), uint64_t(0));
}

TEST(multiply_high_is_the_upper_half_of_the_product) {
  std::mt19937_64 random(1);
  std::vector<uint64_t> values = {0, 1, 0xffffffff, uint64_t(1) << 32, ~uint64_t(0)};
  for (int i = 0; i < 200; ++i) values.push_back(random() >> (i % 64));
  for (const uint64_t a : values)
    for (const uint64_t b : values) {
      const auto product = static_cast<unsigned __int128>(a) * b;
      CHECK_EQ(multiply_high(a, b), static_cast<uint64_t>(product >> 64));
    }
}

TEST(top_p_threshold_is_the_share_of_the_sum) {
  std::mt19937_64 random(2);
  for (int i = 0; i < 2000; ++i) {
    const uint64_t total = (random() >> (1 + i % 63)) + 1;
    const float top_p = float(random() >> 40) * 0x1p-24f + 0x1p-25f;
    const uint64_t fixed = fixed_top_p(top_p);
    CHECK_EQ(double(fixed), std::floor(std::ldexp(double(top_p), 32)));
    const auto product = static_cast<unsigned __int128>(total) * fixed;
    const uint64_t share = static_cast<uint64_t>(product >> 32);
    CHECK_EQ(top_p_threshold(total, fixed), share > 0 ? share : uint64_t(1));
  }
  const uint64_t largest = (uint64_t(1) << 63) - 1;
  CHECK_EQ(top_p_threshold(largest, fixed_top_p(1.0f)), largest);
  CHECK_EQ(top_p_threshold(1, fixed_top_p(1e-30f)), uint64_t(1));
}
