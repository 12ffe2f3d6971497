// Floats as integers that compare like them.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace awq_edge {

AWQ_EDGE_HD uint32_t bits_of_float(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

AWQ_EDGE_HD float float_of_bits(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

// Larger float, larger integer; -0 and +0 are the same; NaN is 0, below everything.
AWQ_EDGE_HD uint32_t order_of(float value) {
  if (value != value) return 0;
  if (value == 0.0f) return 0x80000000u;
  const uint32_t bits = bits_of_float(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The float that has this order; NaN for 0.
AWQ_EDGE_HD float float_of_order(uint32_t order) {
  return float_of_bits(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

// With a number behind it: of two floats that are equal, the one with the smaller number is larger.
AWQ_EDGE_HD uint64_t ranked(float value, uint32_t number) {
  return static_cast<uint64_t>(order_of(value)) << 32 | static_cast<uint32_t>(~number);
}

AWQ_EDGE_HD uint32_t number_of(uint64_t rank) { return ~static_cast<uint32_t>(rank); }

AWQ_EDGE_HD float value_of(uint64_t rank) {
  return float_of_order(static_cast<uint32_t>(rank >> 32));
}

}  // namespace awq_edge
