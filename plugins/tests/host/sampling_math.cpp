#include "sampling_math.h"

#include <cmath>
#include <random>

#include "check.h"

using namespace awq_edge;

// The value of 16 bits by the definition of float16, independent of key_value's shortcuts.
static double value_by_definition(uint32_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double sign = bits >> 15 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(mantissa + 1024, exponent - 25);
}

TEST(keys_give_back_every_value_and_sort_like_them) {
  std::vector<double> by_key(kKeys, NAN);
  for (uint32_t bits = 0; bits < kKeys; ++bits) {
    const double value = value_by_definition(bits);
    const uint32_t key = sort_key(bits);
    CHECK(key < uint32_t(kKeys));
    if (std::isnan(value)) {
      CHECK_EQ(key, 0u);
      continue;
    }
    CHECK(key != 0);
    CHECK_EQ(double(key_value(key)), value);
    CHECK_EQ(key == kZeroKey, value == 0.0);
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
  CHECK(std::isnan(key_value(0)));
}

TEST(floats_and_their_orders) {
  const float values[] = {-INFINITY, -3e38f, -1.5f, -1e-45f, 0.0f, 1e-45f, 1.0f, 3e38f, INFINITY};
  uint32_t before = order_of(NAN);
  CHECK_EQ(before, 0u);
  CHECK(std::isnan(float_of_order(0)));
  for (const float value : values) {
    CHECK(order_of(value) > before);
    before = order_of(value);
    CHECK_EQ(float_of_order(before), value);
    CHECK(ranked(value, 3) > ranked(value, 4));
    CHECK_EQ(number_of(ranked(value, 77)), 77u);
    CHECK_EQ(value_of(ranked(value, 77)), value);
  }
  CHECK_EQ(order_of(-0.0f), order_of(0.0f));
}

TEST(weights_are_the_exponential) {
  for (const double temperature : {0.1, 0.7, 1.0, 3.0}) {
    const float scale = sampling_scale(float(temperature));
    for (uint32_t key = sort_key(0xfc00); key < kZeroKey; ++key) {  // from -infinity
      const double exact = std::exp2(kWeightBits) * std::exp(double(key_value(key)) / temperature);
      const double weight = double(sampling_weight(key, kZeroKey, scale));
      // One rounding of x at up to 44 is 2^-19.5 of it in 2^x, one unit is lost below.
      CHECK(std::abs(weight - exact) <= 4e-6 * exact + 1.0);
    }
  }
}

TEST(weights_of_special_values) {
  const uint32_t lowest = sort_key(0xfc00), minus_one = sort_key(0xbc00), nan = sort_key(0x7e00);
  const uint64_t full = uint64_t(1) << kWeightBits;
  CHECK_EQ(sampling_weight(kZeroKey, kZeroKey, 1.0f), full);
  CHECK_EQ(sampling_weight(lowest, kZeroKey, 1.0f), uint64_t(0));
  CHECK_EQ(sampling_weight(nan, kZeroKey, 1.0f), uint64_t(0));
  CHECK_EQ(sampling_weight(nan, nan, 1.0f), full);
  // The coldest temperature: an infinite scale.
  CHECK_EQ(sampling_weight(kZeroKey, kZeroKey, INFINITY), full);
  CHECK_EQ(sampling_weight(minus_one, kZeroKey, INFINITY), uint64_t(0));
}

TEST(what_is_out_of_range_is_off) {
  for (const float top_p : {1.0f, 1.5f, -0.5f, NAN})
    CHECK_EQ(fixed_top_p(top_p), uint64_t(1) << 32);
  for (const float min_p : {0.0f, -1.0f, 1.5f, NAN}) CHECK_EQ(fixed_min_p(min_p), uint64_t(0));
  CHECK_EQ(fixed_min_p(1.0f), uint64_t(1) << kWeightBits);
  CHECK_EQ(fixed_min_p(0.25f), uint64_t(1) << (kWeightBits - 2));
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
