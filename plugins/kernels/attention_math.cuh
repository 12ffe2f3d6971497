// The arithmetic that decode and prefill attention share: scores, exponentials, fragments.
#pragma once

#include "attention_fragments.h"
#include "awq_edge_kernels.h"
#include "element.cuh"

namespace awq_edge {

constexpr float kLog2E = 1.4426950408889634f;

__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Shares are 2^(factor * score - ...), where a score is q . k, or, with a soft cap,
// tanh(q . k * inner). factor > 0, so that the largest score has the largest share.
struct ScoreScale {
  float factor;
  float inner;  // 0: no soft cap
};

__device__ __forceinline__ ScoreScale score_scale(const awq_edge_attention& a) {
  if (a.soft_cap == 0.0f) return {a.scale * kLog2E, 0.0f};
  return {a.soft_cap * kLog2E, a.scale / a.soft_cap};
}

// tanh.approx is good to 11 bits, of which a cap of 50 would leave an error of 0.02 in the
// exponent; this is good to 22.
__device__ __forceinline__ float soft_capped(float dot, ScoreScale scale) {
  const float e = exp2_approximate(2.0f * kLog2E * dot * scale.inner);
  return 1.0f - __fdividef(2.0f, e + 1.0f);
}

// The score that shares are relative to: the maximum, but never -inf, so that rows that have seen no
// key yet give 2^-inf = 0 and not NaN.
__device__ __forceinline__ float reference_of(float maximum) {
  return maximum == -INFINITY ? 0.0f : maximum;
}

// The share of a head's sink, relative to 2^maximum, as all shares are. Infinite where it leaves
// nothing to the others.
template <typename T>
__device__ __forceinline__ float sink_share(const awq_edge_attention& a, int head, float maximum) {
  if (a.sinks == nullptr) return 0.0f;
  const float sink = to_float(static_cast<const T*>(a.sinks)[head]) * kLog2E;
  return exp2_approximate(sink - reference_of(maximum));
}

template <typename T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack_pair<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ __forceinline__ uint32_t pack_pair<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Two codes, in the bytes 0 and 2 of `codes`, as a pair of T; exact.
template <typename T>
__device__ __forceinline__ uint32_t expand_pair(uint32_t codes);
template <>
__device__ __forceinline__ uint32_t expand_pair<__half>(uint32_t codes) {
  const CodeBits bits = float16_code_bits(codes);
  const __half2 pair = __hsub2(*reinterpret_cast<const __half2*>(&bits.minuend),
                               *reinterpret_cast<const __half2*>(&bits.subtrahend));
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ __forceinline__ uint32_t expand_pair<__nv_bfloat16>(uint32_t codes) {
  const CodeBits bits = bfloat16_code_bits(codes);
  const __nv_bfloat162 pair = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&bits.minuend),
                                      *reinterpret_cast<const __nv_bfloat162*>(&bits.subtrahend));
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Four codes of a word as two words of T.
template <typename T>
__device__ __forceinline__ void expand_codes(uint32_t codes, uint32_t& low, uint32_t& high) {
  low = expand_pair<T>(__byte_perm(codes, 0, 0x4140));
  high = expand_pair<T>(__byte_perm(codes, 0, 0x4342));
}

}  // namespace awq_edge
