// The places of values: rotary pairs, shared-memory swizzle, fragments of the decode kernel, and the
// bits of int8 codes as floating point. Plain arithmetic, the same on the host and on the device.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace awq_edge {

// ------------------------------------------------------------------ rotary pairs
// A head of d channels is d / 2 pairs: the first rotary_size / 2 rotate, the others stay.
struct ChannelPair {
  int first;
  int second;
};

AWQ_EDGE_HD ChannelPair channel_pair(int pair, int rotary_size) {
  const int half = rotary_size / 2;
  if (pair < half) return {pair, pair + half};
  return {2 * pair, 2 * pair + 1};
}

// ------------------------------------------------------------------ shared memory
// Element of channel `channel` of row `row` in a tile of 16-bit elements. Chunks of 16 bytes are
// permuted within a row, so that 8 rows of one column of chunks (what ldmatrix reads at a time)
// lie in 8 different groups of 4 banks. Where the rows are an odd multiple of 64 bytes, two
// neighbours already differ by half of the banks, and four permutations are enough.
template <int kHeadSize>
AWQ_EDGE_HD int swizzled(int row, int channel) {
  constexpr bool kFullLines = kHeadSize * 2 % 128 == 0;
  const int permutation = kFullLines ? row & 7 : (row >> 1) & 3;
  return row * kHeadSize + (((channel >> 3) ^ permutation) << 3) + (channel & 7);
}

// The same for ldmatrix: a lane reads row `row` (of which only the low bits matter) and, of the
// chunks `chunk` and `chunk` + 1, the one that `odd` says. `chunk` is even and known at compile
// time, so that a tile's addresses are a few exclusive-ors and constants.
template <int kHeadSize>
AWQ_EDGE_HD uint32_t swizzle_lane_bits(int row, int odd) {
  constexpr bool kFullLines = kHeadSize * 2 % 128 == 0;
  return static_cast<uint32_t>(((kFullLines ? row & 7 : (row >> 1) & 3) ^ odd) << 4);
}

template <int kHeadSize>
AWQ_EDGE_HD uint32_t swizzled_chunk_bytes(int chunk, uint32_t lane_bits) {
  constexpr int kPermuted = kHeadSize * 2 % 128 == 0 ? 7 : 3;
  return static_cast<uint32_t>((chunk & ~kPermuted) << 4) +
         (static_cast<uint32_t>((chunk & kPermuted) << 4) ^ lane_bits);
}

// Rows of queries of the decode kernel: 64 more bytes where rows are whole lines of 128, so that
// two rows of 64 bytes that are read together do not meet in the same banks.
template <int kHeadSize>
AWQ_EDGE_HD int query_stride() {
  return kHeadSize * 2 % 128 == 0 ? kHeadSize + 32 : kHeadSize;
}

// ------------------------------------------------------------------ decode fragments
// With lane = 4 g + t, the decode kernel computes scores^T = K Q^T and y^T = V^T P^T with 16 keys
// a step, keys (or channels of V) as the 16 rows of the mma and queries as its 8 columns. The sum
// over channels does not mind their order, and neither does it matter which row of the mma is
// which channel of y; the order is chosen so that a lane's operands are consecutive in memory and
// go from there to the registers without shared memory:
//
//   K: of keys g and g + 8 the channels 32 j + 8 t .. + 7, four words of two channels each;
//      the mma step 2 j takes words 0 and 1 as its k = 2t.. and 2t+8.., step 2 j + 1 words 2, 3.
//   V: of keys 2t, 2t+1, 2t+8, 2t+9 the channels 64 c + 8 g .. + 7; tile 4 c + e has in row g
//      channel 64 c + 8 g + 2 e and in row g + 8 the next one. A rest of 32 channels has 4 a lane
//      and two tiles.

// First channel of lane t's words of K in chunk j.
AWQ_EDGE_HD int key_channel(int t, int chunk) { return 32 * chunk + 8 * t; }

// Key of the tile that is row 0..3 of lane t's four rows of V.
AWQ_EDGE_HD int value_key(int t, int row) { return 2 * t + (row & 1) + (row >> 1) * 8; }

// First channel of lane g's words of V in chunk c.
template <int kHeadSize>
AWQ_EDGE_HD int value_channel(int g, int chunk) {
  return 64 * chunk + (chunk < kHeadSize / 64 ? 8 : 4) * g;
}

// Channel of y in row g of mma tile `tile`; row g + 8 is the next one.
template <int kHeadSize>
AWQ_EDGE_HD int output_channel(int g, int tile) {
  return value_channel<kHeadSize>(g, tile / 4) + 2 * (tile % 4);
}

// ------------------------------------------------------------------ int8 codes
// A code is found as a difference of two numbers whose bits need no conversion.
//   float16: 0x6400 + u is 1024 + u; with u = code + 128, subtract 1152.
//   bfloat16, 7 bits of mantissa: 0x4300 + low is 128 + low, low the 7 low bits of the code, and
//   0x4300 + (code & 0x80) is 128, or 256 where the code is negative: low - 128 is the code then.
struct CodeBits {
  uint32_t minuend;     // of codes 0 and 1 in the low and the high half
  uint32_t subtrahend;  // likewise
};

// `codes`: two codes in the bytes 0 and 2, the bytes 1 and 3 zero.
AWQ_EDGE_HD CodeBits float16_code_bits(uint32_t codes) {
  return {(codes ^ 0x00800080u) | 0x64006400u, 0x64806480u};
}

AWQ_EDGE_HD CodeBits bfloat16_code_bits(uint32_t codes) {
  return {(codes & 0x007f007fu) | 0x43004300u, (codes & 0x00800080u) | 0x43004300u};
}

// The code of a value; scale = largest magnitude of the row / 127, 0 for a row of zeros.
AWQ_EDGE_HD int int8_code(float value, float inverse_scale) {
  const float scaled = value * inverse_scale;
  // Ties to even as cvt.rni does: adding 1.5 * 2^23 leaves no bits behind the point.
  const int code = static_cast<int>((scaled + 12582912.0f) - 12582912.0f);
  return code > 127 ? 127 : code < -127 ? -127 : code;
}

}  // namespace awq_edge
