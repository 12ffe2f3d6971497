// Layout version 1 of a quantized weight: where each code of W [n, k] lies. The same on host and
// device; awq_edge/kernels/packing.py is the writer.
//
// The unit is a block of 16 rows and 128 input channels. One lane of a warp owns the codes that it
// multiplies: fragment A of mma.m16n8k16, eight k steps long, in 4, 6 or 2 x 8 words. With
// lane = 4 g + t, half h and step s of it (four steps of 16 channels each), register r of the
// fragment and element e of the register:
//
//     row     = g + 8 (r & 1)
//     channel = 64 h + 32 (s >> 1) + 8 t + 4 (s & 1) + 2 (r >> 1) + e
//
// The tensor core sums over channels, so their order within a step is free. This one lets a lane
// read its part of x, 8 t .. 8 t + 7 of 32 channels, in one 16-byte load for two steps, and keeps
// the channels of a step within 32, the smallest group.
//
//   bits 4: word (h, s)        nibble r: element 0 of register r; nibble r + 4: element 1
//   bits 8: words (h, s, r>>1) byte 2 (r & 1) + e
//   bits 3: words (h, u), u < 3: pairs p = 4 s + r of a half; pair 5 u + i in bits 3 i.. (element 0)
//           and 16 + 3 i.. (element 1); bit j of pair 15 in bits 15 and 31 of word (h, j)
//
// A lane's words in this order are written 16 bytes at a time, all lanes of a vector together; the
// last two of the six words of 3 bits are a vector of 8 bytes:
//
//     | vector 0: lane 0, 1, ..., 31 | vector 1: lane 0, ... | ...
#pragma once

#include <cstdint>

#include "host_device.h"

namespace awq_edge {

constexpr int kTileRows = 16;
constexpr int kBlockChannels = 128;
constexpr int kStepsPerHalf = 4;
constexpr int kLanes = 32;

AWQ_EDGE_HD constexpr int block_words(int bits) { return 64 * bits; }
AWQ_EDGE_HD constexpr int lane_words(int bits) { return 2 * bits; }
AWQ_EDGE_HD constexpr int groups_per_block(int group_size) { return kBlockChannels / group_size; }
// 32-bit words of the zero points of one tile and group.
AWQ_EDGE_HD constexpr int zero_words(int bits) { return bits == 8 ? 4 : 2; }

AWQ_EDGE_HD int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Within a block: the row and the channel of an element of a lane's fragment.
AWQ_EDGE_HD int fragment_row(int lane, int r) { return lane / 4 + 8 * (r & 1); }
AWQ_EDGE_HD int fragment_channel(int lane, int h, int s, int r, int e) {
  return 64 * h + 32 * (s >> 1) + 8 * (lane % 4) + 4 * (s & 1) + 2 * (r >> 1) + e;
}

// Index, within the words of a block, of word `w` of a lane.
AWQ_EDGE_HD int word_index(int bits, int lane, int w) {
  if (bits == 3 && w >= 4) return 4 * kLanes + 2 * lane + (w - 4);
  return (w / 4) * 4 * kLanes + 4 * lane + w % 4;
}

// The code of element (h, s, r, e) in a lane's words. The reference that the kernels' faster
// dequantization is tested against.
AWQ_EDGE_HD uint32_t extract_code(int bits, const uint32_t* words, int h, int s, int r, int e) {
  if (bits == 4) return words[4 * h + s] >> (4 * r + 16 * e) & 0xf;
  if (bits == 8) return words[8 * h + 2 * s + (r >> 1)] >> (16 * (r & 1) + 8 * e) & 0xff;
  const int pair = 4 * s + r;
  const uint32_t* half = words + 3 * h;
  if (pair < 15) return half[pair / 5] >> (3 * (pair % 5) + 16 * e) & 0x7;
  const int bit = 15 + 16 * e;
  return (half[0] >> bit & 1) | (half[1] >> bit & 1) << 1 | (half[2] >> bit & 1) << 2;
}

// Eight neighbouring channels of one row, from `channel`, a multiple of 8, on. At 4 and 8 bits they are
// in bits / 2 words of one lane that follow each other: two steps of the two registers of that row.
struct RowChunk {
  int lane;
  int word;  // the first of them, of the lane
  int r;     // the first register
};

AWQ_EDGE_HD RowChunk row_chunk(int bits, int row, int channel) {
  return {4 * (row % 8) + channel % 32 / 8,
          channel / 64 * bits + channel % 64 / 32 * (bits / 2), row / 8};
}

// The code of channel `i` of the eight. words: those of the chunk.
AWQ_EDGE_HD uint32_t chunk_code(int bits, const uint32_t* words, const RowChunk& chunk, int i) {
  return extract_code(bits, words, 0, i / 4, chunk.r + i / 2 % 2 * 2, i % 2);
}

// The zero point of row `row` of a tile, from the words of its group.
AWQ_EDGE_HD uint32_t extract_zero(int bits, const uint32_t* words, int row) {
  const int g = row % 8, high = row / 8;
  if (bits == 8) return words[g / 2] >> (16 * (g % 2) + 8 * high) & 0xff;
  return words[g / 4] >> (8 * (g % 4) + 4 * high) & 0xf;
}

}  // namespace awq_edge
