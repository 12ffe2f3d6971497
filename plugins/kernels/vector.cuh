// Several elements in one memory access, and how many of them a row's size allows.
#pragma once

#include <cuda_runtime.h>

namespace awq_edge {

// 16 bytes of an activation dtype.
constexpr int kVectorElements = 8;

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  T values[kCount];
};

template <int kCount, typename T>
__device__ __forceinline__ Vector<T, kCount> load_vector(const T* row, int index) {
  return reinterpret_cast<const Vector<T, kCount>*>(row)[index];
}

template <int kCount, typename T>
__device__ __forceinline__ void store_vector(T* row, int index, const Vector<T, kCount>& vector) {
  reinterpret_cast<Vector<T, kCount>*>(row)[index] = vector;
}

// Rows follow each other without a gap: all of them start at 16 bytes only if the first ends there.
inline bool fits_vectors(int size) { return size % kVectorElements == 0; }

}  // namespace awq_edge
