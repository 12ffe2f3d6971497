// Launches for tactics that multiply by another library: the weight as numbers, and the epilogue.
#pragma once

#include <cstdint>

namespace awq_edge {

struct Output;

struct ExpandArguments {
  const uint32_t* qweight;
  const uint8_t* scales;
  const uint8_t* zeros;  // may be null
  void* w;               // [rows, k]
  int rows, k;
  int tiles, blocks;
  int group_size;
};

int launch_expand(const ExpandArguments& arguments, int dtype, int bits, void* stream);
int launch_finish(const void* sums, const Output& output, int m, int rows, int dtype, void* stream);

}  // namespace awq_edge
