// Qualifiers of the functions that a kernel and a test on the CPU share: arithmetic on indices and
// bits lives in headers that include this one and nothing of CUDA, so that any C++ compiler takes
// them (plugins/tests/host).
#pragma once

#ifdef __CUDACC__
#define AWQ_EDGE_HD __host__ __device__ __forceinline__
#else
#define AWQ_EDGE_HD inline
#endif
