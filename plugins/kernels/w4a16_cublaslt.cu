// cuBLASLt, loaded at run time: the library is no dependency of this one, and its headers are not
// needed. The few declarations are those of its documented, stable C interface.
#include <dlfcn.h>
#include <pthread.h>

#include "status.h"
#include "w4a16_launch.h"

namespace awq_edge {
namespace {

using Handle = void*;
using Descriptor = void*;
using Layout = void*;
using Preference = void*;

struct Algorithm {
  uint64_t data[8];
};
struct HeuristicResult {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

constexpr int kFloat32 = 0, kFloat16 = 2, kBFloat16 = 14;  // cudaDataType_t
constexpr int kComputeFloat32 = 68;                        // CUBLAS_COMPUTE_32F
constexpr int kTransposed = 1;                             // CUBLAS_OP_T
constexpr int kTransposeA = 3;                             // CUBLASLT_MATMUL_DESC_TRANSA
constexpr int kMaxWorkspace = 1;                           // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES

struct Library {
  int (*create)(Handle*);
  int (*descriptor_create)(Descriptor*, int, int);
  int (*descriptor_set)(Descriptor, int, const void*, size_t);
  int (*descriptor_destroy)(Descriptor);
  int (*layout_create)(Layout*, int, uint64_t, uint64_t, int64_t);
  int (*layout_destroy)(Layout);
  int (*preference_create)(Preference*);
  int (*preference_set)(Preference, int, const void*, size_t);
  int (*preference_destroy)(Preference);
  int (*heuristic)(Handle, Descriptor, Layout, Layout, Layout, Layout, Preference, int,
                   HeuristicResult*, int*);
  int (*matmul)(Handle, Descriptor, const void*, const void*, Layout, const void*, Layout,
                const void*, const void*, Layout, void*, Layout, const Algorithm*, void*, size_t,
                cudaStream_t);
  bool complete;
};

template <typename Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

Library load() {
  Library l{};
  void* handle = nullptr;
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}) {
    handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (handle != nullptr) break;
  }
  if (handle == nullptr) return l;
  l.complete = find(handle, "cublasLtCreate", l.create) &&
               find(handle, "cublasLtMatmulDescCreate", l.descriptor_create) &&
               find(handle, "cublasLtMatmulDescSetAttribute", l.descriptor_set) &&
               find(handle, "cublasLtMatmulDescDestroy", l.descriptor_destroy) &&
               find(handle, "cublasLtMatrixLayoutCreate", l.layout_create) &&
               find(handle, "cublasLtMatrixLayoutDestroy", l.layout_destroy) &&
               find(handle, "cublasLtMatmulPreferenceCreate", l.preference_create) &&
               find(handle, "cublasLtMatmulPreferenceSetAttribute", l.preference_set) &&
               find(handle, "cublasLtMatmulPreferenceDestroy", l.preference_destroy) &&
               find(handle, "cublasLtMatmulAlgoGetHeuristic", l.heuristic) &&
               find(handle, "cublasLtMatmul", l.matmul);
  return l;
}

const Library& library() {
  static const Library loaded = load();
  return loaded;
}

// One handle per device, made at first use.
Handle handle_of_device() {
  constexpr int kDevices = 64;
  // std::mutex may throw, and with that half of the C++ runtime would be linked in.
  static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  static Handle handles[kDevices] = {};
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) return nullptr;
  pthread_mutex_lock(&mutex);
  if (handles[device] == nullptr && library().create(&handles[device]) != 0)
    handles[device] = nullptr;
  const Handle handle = handles[device];
  pthread_mutex_unlock(&mutex);
  return handle;
}

// The descriptors of one product, destroyed in any case.
struct Product {
  Descriptor descriptor = nullptr;
  Layout weights = nullptr, x = nullptr, y = nullptr;
  Preference preference = nullptr;

  ~Product() {
    const Library& l = library();
    if (preference != nullptr) l.preference_destroy(preference);
    if (y != nullptr) l.layout_destroy(y);
    if (x != nullptr) l.layout_destroy(x);
    if (weights != nullptr) l.layout_destroy(weights);
    if (descriptor != nullptr) l.descriptor_destroy(descriptor);
  }

  // In column-major terms: y^T [n, m] = W [n, k] x^T [k, m], where W is stored as its transpose.
  int create(int m, int n, int k, int type, size_t workspace_bytes) {
    const Library& l = library();
    const uint64_t bytes = workspace_bytes;
    const int transposed = kTransposed;
    int status = l.descriptor_create(&descriptor, kComputeFloat32, kFloat32);
    if (status == 0) {
      status = l.descriptor_set(descriptor, kTransposeA, &transposed, sizeof transposed);
    }
    if (status == 0) status = l.layout_create(&weights, type, k, n, k);
    if (status == 0) status = l.layout_create(&x, type, k, m, k);
    if (status == 0) status = l.layout_create(&y, type, n, m, n);
    if (status == 0) status = l.preference_create(&preference);
    if (status == 0) status = l.preference_set(preference, kMaxWorkspace, &bytes, sizeof bytes);
    return status;
  }
};

}  // namespace

bool has_cublaslt() { return library().complete; }

int launch_cublaslt(const void* weights, const void* x, void* y, int m, int n, int k, int dtype,
                    void* workspace, size_t workspace_bytes, void* stream) {
  const Library& l = library();
  const Handle handle = handle_of_device();
  if (handle == nullptr) return fail(AWQ_EDGE_CUDA_ERROR, "linear: cublasLtCreate failed");
  Product product;
  const int type = dtype == AWQ_EDGE_FLOAT16 ? kFloat16 : kBFloat16;
  int status = product.create(m, n, k, type, workspace_bytes);
  HeuristicResult result{};
  int algorithms = 0;
  if (status == 0) {
    status = l.heuristic(handle, product.descriptor, product.weights, product.x, product.y,
                         product.y, product.preference, 1, &result, &algorithms);
  }
  if (status == 0 && algorithms == 0) status = 15;  // CUBLAS_STATUS_NOT_SUPPORTED
  const float one = 1.0f, zero = 0.0f;
  if (status == 0) {
    status = l.matmul(handle, product.descriptor, &one, weights, product.weights, x, product.x,
                      &zero, y, product.y, y, product.y, &result.algorithm, workspace,
                      workspace_bytes, static_cast<cudaStream_t>(stream));
  }
  if (status == 0) return AWQ_EDGE_OK;
  return fail(AWQ_EDGE_CUDA_ERROR, "linear: cuBLASLt refused [%d, %d] x [%d, %d]^T with status %d",
              m, k, n, k, status);
}

}  // namespace awq_edge
