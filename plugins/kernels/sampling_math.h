// The arithmetic of sampling: exact, so that no order of summation and no other implementation
// gives another token. Logits have 16 bits, hence an integer key that sorts them, of which there
// are 65,536; probabilities are integers in units of 2^-44 of the largest one.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace awq_edge {

// With a vocabulary of 2^18, sums of weights stay below 2^63.
constexpr int kWeightBits = 44;
constexpr int kMaxVocab = 1 << 18;
constexpr int kKeys = 1 << 16;

// ------------------------------------------------------------------ keys
// Larger value, larger key; -0 and +0 are the same; NaN is 0, below everything.

AWQ_EDGE_HD uint32_t sort_key(uint32_t bits, bool bfloat16) {
  const uint32_t magnitude = bits & 0x7fffu;
  const uint32_t infinity = bfloat16 ? 0x7f80u : 0x7c00u;
  if (magnitude > infinity) return 0;
  if (magnitude == 0) return 0x8000u;
  return bits & 0x8000u ? ~bits & 0xffffu : bits | 0x8000u;
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

// The value that has this key; NaN for 0.
AWQ_EDGE_HD float key_value(uint32_t key, bool bfloat16) {
  const uint32_t bits = key & 0x8000u ? key & 0x7fffu : ~key & 0xffffu;
  if (bfloat16) return float_of_bits(bits << 16);
  const uint32_t sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // float16's exponent bias is 15, float32's 127: 2^112 apart. Subnormal halves become normal.
  const float scaled = float_of_bits(magnitude << 13) * 0x1p112f;
  return sign ? -scaled : scaled;
}

// ------------------------------------------------------------------ weights

// Products and sums that the compiler must not fuse, or the last bit would depend on it.
AWQ_EDGE_HD float product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;  // hosts compile with -ffp-contract=off
#endif
}
AWQ_EDGE_HD float sum(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

// floor(2^44 * 2^x) for x <= 0, x = (value - maximum) * scale, scale = log2(e) / temperature;
// 2^44 where the keys are equal, 0 below 2^-44. 2^x by a polynomial on its fraction (relative
// error 1e-7), computed in float32 without fused operations.
AWQ_EDGE_HD uint64_t sampling_weight(uint32_t key, uint32_t maximum, float scale, bool bfloat16) {
  constexpr uint64_t kOne = uint64_t(1) << kWeightBits;
  if (key == maximum) return kOne;
  const float x =
      product(sum(key_value(key, bfloat16), -key_value(maximum, bfloat16)), scale);
  if (!(x >= -static_cast<float>(kWeightBits))) return 0;  // NaN too
  const float whole = floorf(x), fraction = sum(x, -whole);
  float power = 0x1.b4d1dep-13f;
  power = sum(product(power, fraction), 0x1.4ca4cep-10f);
  power = sum(product(power, fraction), 0x1.3c4a8ap-7f);
  power = sum(product(power, fraction), 0x1.c69f6ap-5f);
  power = sum(product(power, fraction), 0x1.ebfc40p-3f);
  power = sum(product(power, fraction), 0x1.62e430p-1f);
  power = sum(product(power, fraction), 1.0f);
  const uint64_t mantissa = static_cast<uint64_t>(power * 0x1p23f);
  const int shift = kWeightBits - 23 + static_cast<int>(whole);
  return shift >= 0 ? mantissa << shift : mantissa >> -shift;
}

// ------------------------------------------------------------------ shares of a sum

// floor(a * b / 2^64)
AWQ_EDGE_HD uint64_t multiply_high(uint64_t a, uint64_t b) {
  const uint64_t a0 = a & 0xffffffffu, a1 = a >> 32, b0 = b & 0xffffffffu, b1 = b >> 32;
  const uint64_t low = (a0 * b0) >> 32, cross = a1 * b0 + low;
  return a1 * b1 + (cross >> 32) + ((a0 * b1 + (cross & 0xffffffffu)) >> 32);
}

// top_p in units of 2^-32, 0 < top_p <= 1.
AWQ_EDGE_HD uint64_t fixed_top_p(float top_p) {
  return static_cast<uint64_t>(static_cast<double>(top_p) * 4294967296.0);
}

// The sum that the kept tokens must reach: floor(total * top_p), at least 1. total < 2^63.
AWQ_EDGE_HD uint64_t top_p_threshold(uint64_t total, uint64_t fixed) {
  const uint64_t share = (total >> 32) * fixed + (((total & 0xffffffffu) * fixed) >> 32);
  return share > 0 ? share : 1;
}

}  // namespace awq_edge
