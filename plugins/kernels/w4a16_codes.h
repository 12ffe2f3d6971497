// From packed codes to the integers that tensor cores multiply, without a conversion.
//
// The bits of a code are placed in the mantissa of a float with a fixed exponent ("magic"): with
// float16, 0x6400 | q is 1024 + q; with bfloat16, 0x4300 | q is 128 + q. One operation takes the
// offset and the zero point away: (1024 + q) - (1024 + z) = q - z, exactly. A code that lies p bits
// higher in the mantissa counts 2^p times; the same operation, a fused multiply-add, divides that
// out again: (1024 + 2^p q) / 2^p - (1024 / 2^p + z) = q - z. So most codes need no shift.
//
// Here is the part that is arithmetic on integers, for one pair (element 0 in the low half of a
// word, element 1 in the high one); w4a16_dequantize.cuh has the floating-point part.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace awq_edge {

// Bits of mantissa, and the bits of a positive power of two whose ulp is 1.
struct Float16Codes {
  static constexpr int kMantissa = 10;
  static constexpr uint32_t kMagic = 0x6400;  // 1024
};
struct BFloat16Codes {
  static constexpr int kMantissa = 7;
  static constexpr uint32_t kMagic = 0x4300;  // 128
};

// The place of the pair of register `r` in step `s` of a half: in word `word` of the half's words,
// behind a shift of `shift`, `position` bits up in the mantissa.
struct PairPlace {
  int word;
  int shift;
  int position;
};

template <typename Codes, int kBits>
AWQ_EDGE_HD constexpr PairPlace pair_place(int s, int r) {
  static_assert(kBits == 3 || kBits == 4, "8 bits go by bytes");
  const int pair = kBits == 4 ? r : (4 * s + r) % 5;  // within its word
  const int word = kBits == 4 ? s : (4 * s + r) / 5;
  const int per_shift = Codes::kMantissa / kBits;  // codes that fit into the mantissa
  return {word, pair / per_shift * per_shift * kBits, pair % per_shift * kBits};
}

// The sixteenth pair of a half at 3 bits is spread over its three words.
template <int kBits>
AWQ_EDGE_HD constexpr bool is_spread(int s, int r) {
  return kBits == 3 && s == 3 && r == 3;
}

// 2^position times the code, plus the magic number, in both halves of a word.
template <typename Codes, int kBits>
AWQ_EDGE_HD uint32_t magic_pair(const uint32_t* half_words, int s, int r) {
  constexpr uint32_t magic = Codes::kMagic * 0x00010001u;
  if (is_spread<kBits>(s, r)) {
    return (half_words[0] >> 15 & 0x00010001u) | (half_words[1] >> 14 & 0x00020002u) |
           (half_words[2] >> 13 & 0x00040004u) | magic;
  }
  const PairPlace place = pair_place<Codes, kBits>(s, r);
  const uint32_t mask = (((1u << kBits) - 1) << place.position) * 0x00010001u;
  return (half_words[place.word] >> place.shift & mask) | magic;
}

// Bits up in the mantissa that magic_pair leaves the code at.
template <typename Codes, int kBits>
AWQ_EDGE_HD constexpr int magic_position(int s, int r) {
  return is_spread<kBits>(s, r) ? 0 : pair_place<Codes, kBits>(s, r).position;
}

// -(magic / 2^position + zero) in both halves of a word: dividing by 2^position takes `position`
// from the exponent, and leaves an ulp of 2^-position.
template <typename Codes>
AWQ_EDGE_HD constexpr uint32_t zero_offset(uint32_t zero, int position) {
  const uint32_t power = Codes::kMagic - (static_cast<uint32_t>(position) << Codes::kMantissa);
  return (0x8000u | (power + (zero << position))) * 0x00010001u;
}

// 2^-position in both halves of a word.
template <typename Codes>
AWQ_EDGE_HD constexpr uint32_t inverse_power(int position) {
  const uint32_t bias = (1u << (14 - Codes::kMantissa)) - 1;
  return ((bias - static_cast<uint32_t>(position)) << Codes::kMantissa) * 0x00010001u;
}

// The codes of a pair of 4 bits as float16 subnormals: in the lowest bits of both halves of a word, or
// four bits up for rows g + 8.
AWQ_EDGE_HD uint32_t subnormal_pair(const uint32_t* half_words, int s, int r) {
  return half_words[s] >> (r & 2 ? 8 : 0) & (r & 1 ? 0x00f000f0u : 0x000f000fu);
}

}  // namespace awq_edge
