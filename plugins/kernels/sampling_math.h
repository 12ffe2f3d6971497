// The arithmetic of sampling: exact, so that no order of summation and no other implementation
// gives another token.
//
//     v = adjusted_logit, float32         the largest, of equal ones the smallest id: greedy
//     d = float16(v - largest v)          0 for the largest; finer than v where shares are large
//     key = sort_key(d)                   65,536 integers, which sort the tokens
//     weight = sampling_weight(key)       share of the largest, in units of 2^-44
#pragma once

#include <cmath>
#include <cstdint>

#include "float_order.h"
#include "host_device.h"

namespace awq_edge {

// With a vocabulary of 2^18, sums of weights stay below 2^63.
constexpr int kWeightBits = 44;
constexpr int kMaxVocab = 1 << 18;
constexpr int kKeys = 1 << 16;

// ------------------------------------------------------------------ keys
// Of the bits of a float16. Larger value, larger key; -0 and +0 are the same; NaN is 0, below
// everything.

constexpr uint32_t kZeroKey = 0x8000u;

AWQ_EDGE_HD uint32_t sort_key(uint32_t bits) {
  const uint32_t magnitude = bits & 0x7fffu;
  if (magnitude > 0x7c00u) return 0;
  if (magnitude == 0) return kZeroKey;
  return bits & 0x8000u ? ~bits & 0xffffu : bits | 0x8000u;
}

// The value that has this key; NaN for 0.
AWQ_EDGE_HD float key_value(uint32_t key) {
  const uint32_t bits = key & 0x8000u ? key & 0x7fffu : ~key & 0xffffu;
  const uint32_t sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // float16's exponent bias is 15, float32's 127: 2^112 apart. Subnormal halves become normal.
  const float scaled = float_of_bits(magnitude << 13) * 0x1p112f;
  return sign ? -scaled : scaled;
}

// ------------------------------------------------------------------ products and sums

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

// ------------------------------------------------------------------ penalties

// A token's count: 1 where it occurs in the prompt, plus 2 for each time that it was drawn.
struct Penalties {
  float repetition, inverse_repetition, presence, frequency;
};

AWQ_EDGE_HD Penalties penalties_of(float repetition, float presence, float frequency) {
#ifdef __CUDA_ARCH__
  return {repetition, __frcp_rn(repetition), presence, frequency};
#else
  return {repetition, 1.0f / repetition, presence, frequency};
#endif
}

// The logit after the penalty of tokens that occur (Keskar et al. 2019, arXiv 1909.05858), those of
// tokens that were drawn (OpenAI's), and its bias, in this order.
AWQ_EDGE_HD float adjusted_logit(float logit, uint32_t count, float bias,
                                 const Penalties& penalties) {
  float value = logit;
  if (count != 0)
    value = product(value, value > 0.0f ? penalties.inverse_repetition : penalties.repetition);
  if (count > 1) {
    value = sum(value, -product(static_cast<float>(count >> 1), penalties.frequency));
    value = sum(value, -penalties.presence);
  }
  return sum(value, bias);
}

// ------------------------------------------------------------------ weights

// floor(2^44 * 2^x) for x <= 0, x = d * scale, scale = log2(e) / temperature; 2^44 where key is
// `maximum`, that of the largest (which is NaN's where all are), 0 below 2^-44. 2^x by a polynomial on
// its fraction (relative error 1e-7), computed in float32 without fused operations.
AWQ_EDGE_HD uint64_t sampling_weight(uint32_t key, uint32_t maximum, float scale) {
  constexpr uint64_t kOne = uint64_t(1) << kWeightBits;
  if (key == maximum) return kOne;
  const float x = product(key_value(key), scale);
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

// top_p in units of 2^-32; what is not within 0 to 1 is 1.
AWQ_EDGE_HD uint64_t fixed_top_p(float top_p) {
  if (!(top_p >= 0.0f && top_p < 1.0f)) return uint64_t(1) << 32;
  return static_cast<uint64_t>(static_cast<double>(top_p) * 4294967296.0);
}

// min_p as a weight: floor(2^44 * min_p); what is not within 0 to 1 is 0.
AWQ_EDGE_HD uint64_t fixed_min_p(float min_p) {
  if (!(min_p > 0.0f && min_p <= 1.0f)) return 0;
  return static_cast<uint64_t>(static_cast<double>(min_p) * 17592186044416.0);
}

// log2(e) / temperature, rounded once.
AWQ_EDGE_HD float sampling_scale(float temperature) {
  return static_cast<float>(1.4426950408889634 / static_cast<double>(temperature));
}

// The sum that the kept tokens must reach: floor(total * top_p), at least 1. total < 2^63.
AWQ_EDGE_HD uint64_t top_p_threshold(uint64_t total, uint64_t fixed) {
  const uint64_t share = (total >> 32) * fixed + (((total & 0xffffffffu) * fixed) >> 32);
  return share > 0 ? share : 1;
}

}  // namespace awq_edge
