// Functions that are the same on the host and on the device compile without CUDA too, for the tests
// that run on any machine.
#pragma once

#if defined(__CUDACC__)
#define AWQ_EDGE_HD __host__ __device__ __forceinline__
#else
#define AWQ_EDGE_HD inline
#endif
