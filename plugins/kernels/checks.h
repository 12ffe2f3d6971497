// The checks of every operation on activations, in the same words.
#pragma once

#include "status.h"

#define AWQ_EDGE_REQUIRE_ALIGNED(pointer, bytes)                                           \
  AWQ_EDGE_REQUIRE((pointer) != nullptr && awq_edge::is_aligned((pointer), (bytes)),       \
                   "%s: " #pointer " is %p; it must be a device pointer aligned to %d bytes", \
                   __func__, static_cast<const void*>(pointer), static_cast<int>(bytes))

#define AWQ_EDGE_REQUIRE_TENSOR(pointer) AWQ_EDGE_REQUIRE_ALIGNED(pointer, 16)

#define AWQ_EDGE_REQUIRE_OPTIONAL(pointer)                                     \
  AWQ_EDGE_REQUIRE(awq_edge::is_aligned(pointer),                               \
                   "%s: " #pointer " is %p; it must be null or aligned to 16 bytes", __func__, \
                   static_cast<const void*>(pointer))

#define AWQ_EDGE_REQUIRE_POSITIVE(size) \
  AWQ_EDGE_REQUIRE((size) >= 1, "%s: " #size " is %d; it must be 1 or more", __func__, (size))

#define AWQ_EDGE_REQUIRE_ACTIVATION(dtype)                                                     \
  AWQ_EDGE_REQUIRE((dtype) == AWQ_EDGE_FLOAT16 || (dtype) == AWQ_EDGE_BFLOAT16,                \
                   "%s: dtype is %d; it must be AWQ_EDGE_FLOAT16 (0) or AWQ_EDGE_BFLOAT16 (1)", \
                   __func__, (dtype))
