// A lane's packed words to fragments of code minus zero point, exact integers in T.
#pragma once

#include "element.cuh"
#include "w4a16_codes.h"
#include "w4a16_layout.h"

namespace awq_edge {

template <typename T>
struct CodesOf;
template <>
struct CodesOf<__half> {
  using type = Float16Codes;
};
template <>
struct CodesOf<__nv_bfloat16> {
  using type = BFloat16Codes;
};

// a * b + c in both halves of a word, rounded once.
template <typename T>
__device__ __forceinline__ uint32_t fma_pair(uint32_t a, uint32_t b, uint32_t c);
template <>
__device__ __forceinline__ uint32_t fma_pair<__half>(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
template <>
__device__ __forceinline__ uint32_t fma_pair<__nv_bfloat16>(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// Fragments A of one half (64 channels) of a block, for the zero points of one group at a time.
template <typename T, int kBits>
class Dequantizer {
  using Codes = typename CodesOf<T>::type;
  static constexpr int kPositions = Codes::kMantissa / kBits;

 public:
  // zero0, zero1: of rows g and g + 8.
  __device__ __forceinline__ void set_zeros(uint32_t zero0, uint32_t zero1) {
#pragma unroll
    for (int i = 0; i < kPositions; ++i) {
      offsets_[0][i] = zero_offset<Codes>(zero0, i * kBits);
      offsets_[1][i] = zero_offset<Codes>(zero1, i * kBits);
    }
  }

  // half_words: the words of a half, in registers. s: a constant after unrolling.
  __device__ __forceinline__ void fragment(uint32_t (&a)[4], const uint32_t* half_words,
                                           int s) const {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int position = magic_position<Codes, kBits>(s, r);
      a[r] = fma_pair<T>(magic_pair<Codes, kBits>(half_words, s, r),
                         inverse_power<Codes>(position), offsets_[r & 1][position / kBits]);
    }
  }

 private:
  uint32_t offsets_[2][kPositions];
};

// 8 bits, float16: bytes become mantissas of 1024 + q.
template <>
class Dequantizer<__half, 8> {
 public:
  __device__ __forceinline__ void set_zeros(uint32_t zero0, uint32_t zero1) {
    offsets_[0] = zero_offset<Float16Codes>(zero0, 0);
    offsets_[1] = zero_offset<Float16Codes>(zero1, 0);
  }

  __device__ __forceinline__ void fragment(uint32_t (&a)[4], const uint32_t* half_words,
                                           int s) const {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const uint32_t word = half_words[2 * s + (r >> 1)];
      const uint32_t magic = __byte_perm(word, 0x64646464u, r & 1 ? 0x4342 : 0x4140);
      a[r] = fma_pair<__half>(magic, 0x3c003c00u, offsets_[r & 1]);
    }
  }

 private:
  uint32_t offsets_[2];
};

// 8 bits, bfloat16: its mantissa cannot hold 128 + q for every byte, but q - z fits (8 significant
// bits); float32 is the way there.
template <>
class Dequantizer<__nv_bfloat16, 8> {
 public:
  __device__ __forceinline__ void set_zeros(uint32_t zero0, uint32_t zero1) {
    offsets_[0] = __uint_as_float(0x4b000000u | zero0);
    offsets_[1] = __uint_as_float(0x4b000000u | zero1);
  }

  __device__ __forceinline__ void fragment(uint32_t (&a)[4], const uint32_t* half_words,
                                           int s) const {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const uint32_t word = half_words[2 * s + (r >> 1)];
      const uint32_t low = __byte_perm(word, 0x4b000000u, r & 1 ? 0x7652 : 0x7650);
      const uint32_t high = __byte_perm(word, 0x4b000000u, r & 1 ? 0x7653 : 0x7651);
      const float offset = offsets_[r & 1];
      const __nv_bfloat162 pair = __floats2bfloat162_rn(__uint_as_float(low) - offset,
                                                        __uint_as_float(high) - offset);
      a[r] = *reinterpret_cast<const uint32_t*>(&pair);
    }
  }

 private:
  float offsets_[2];  // 2^23 + zero
};

// Scales (float32) and zero points of rows g and g + 8 in one group.
struct GroupParameters {
  float scale0, scale1;
  uint32_t zero0, zero1;
};

// scales, zeros: of the group (8 pairs of float16; 8 bytes, or 16 at 8 bits). zeros may be null.
template <int kBits>
__device__ __forceinline__ GroupParameters group_parameters(const void* scales, const void* zeros,
                                                            int g) {
  const float2 pair = __half22float2(static_cast<const __half2*>(scales)[g]);
  GroupParameters p{pair.x, pair.y, 1u << (kBits - 1), 1u << (kBits - 1)};
  if (zeros != nullptr) {
    if (kBits == 8) {
      const uint32_t both = static_cast<const uint16_t*>(zeros)[g];
      p.zero0 = both & 0xff;
      p.zero1 = both >> 8;
    } else {
      const uint32_t both = static_cast<const uint8_t*>(zeros)[g];
      p.zero0 = both & 0xf;
      p.zero1 = both >> 4;
    }
  }
  return p;
}

// Fragments A of a decode step, from the codes of a tile, and the factor of their products.
//
// Codes minus zero point, exact, for any dtype and bits.
template <typename T, int kBits>
class DecodeOperand {
 public:
  static constexpr bool kNeedsSumOfX = false;

  __device__ __forceinline__ void set_group(const void* scales, const void* zeros, int g) {
    const GroupParameters group = group_parameters<kBits>(scales, zeros, g);
    scale0_ = group.scale0;
    scale1_ = group.scale1;
    dequantizer_.set_zeros(group.zero0, group.zero1);
  }

  __device__ __forceinline__ void fragment(uint32_t (&a)[4], const uint32_t* half_words,
                                           int s) const {
    dequantizer_.fragment(a, half_words, s);
  }

  // sums += scale * products, for rows g (the first two) and g + 8.
  __device__ __forceinline__ void add_group(float (&sums)[4], const float (&products)[4],
                                            const float (&)[4]) const {
    sums[0] = fmaf(scale0_, products[0], sums[0]);
    sums[1] = fmaf(scale0_, products[1], sums[1]);
    sums[2] = fmaf(scale1_, products[2], sums[2]);
    sums[3] = fmaf(scale1_, products[3], sums[3]);
  }

 private:
  float scale0_, scale1_;
  Dequantizer<T, kBits> dequantizer_;
};

// Codes of 4 bits as they are. Their bits alone are subnormals of float16, q 2^-24 in rows g and,
// four bits up, 16 q 2^-24 in rows g + 8; tensor cores multiply them exactly. The zero point goes
// out of the sums instead: sum (q - z) x = sum q x - z sum x. No operation is left but the mask.
template <>
class DecodeOperand<__half, 4> {
 public:
  static constexpr bool kNeedsSumOfX = true;

  __device__ __forceinline__ void set_group(const void* scales, const void* zeros, int g) {
    const float2 scale = __half22float2(static_cast<const __half2*>(scales)[g]);
    scale0_ = scale.x * 16777216.0f;  // 2^24
    scale1_ = scale.y * 1048576.0f;   // 2^20
    const uint32_t both = zeros != nullptr ? static_cast<const uint8_t*>(zeros)[g] : 0x88;
    const uint32_t pair = (both & 0xf) | (both & 0xf0) << 16;
    const float2 zero = __half22float2(*reinterpret_cast<const __half2*>(&pair));
    zero0_ = zero.x;
    zero1_ = zero.y;
  }

  __device__ __forceinline__ void fragment(uint32_t (&a)[4], const uint32_t* half_words,
                                           int s) const {
#pragma unroll
    for (int r = 0; r < 4; ++r) a[r] = subnormal_pair(half_words, s, r);
  }

  // products, x_sums: of the codes and of ones with x.
  __device__ __forceinline__ void add_group(float (&sums)[4], const float (&products)[4],
                                            const float (&x_sums)[4]) const {
    sums[0] = fmaf(scale0_, fmaf(-zero0_, x_sums[0], products[0]), sums[0]);
    sums[1] = fmaf(scale0_, fmaf(-zero0_, x_sums[1], products[1]), sums[1]);
    sums[2] = fmaf(scale1_, fmaf(-zero1_, x_sums[2], products[2]), sums[2]);
    sums[3] = fmaf(scale1_, fmaf(-zero1_, x_sums[3], products[3]), sums[3]);
  }

 private:
  float scale0_, scale1_, zero0_, zero1_;  // zero points in the units of the products
};

}  // namespace awq_edge
