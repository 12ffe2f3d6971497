// The calls of an operator's plugin to the kernel library: tactics, workspace, the call itself.
// awq_edge/tensorrt/op_calls.py in C++. Shapes here were checked against the contract already.
#pragma once

#include <memory>

#include "contract.h"

namespace awq_edge::plugin {

// dtype: of the activations, "float16" or "bfloat16". shapes: of the node's inputs in order.
class OpCall {
 public:
  virtual ~OpCall() = default;

  int32_t tactic = 0;

  // Take note of the profile that tactics and workspace are for.
  virtual void configure(const std::string& dtype, const std::vector<Shape>& smallest,
                         const std::vector<Shape>& largest) = 0;
  // The tactics that TensorRT may choose from for that profile; empty: nothing to choose.
  virtual std::vector<int32_t> tactics() const = 0;
  // Bytes for any call with inputs up to these shapes.
  virtual size_t workspace(const std::string& dtype, const std::vector<Shape>& largest) const = 0;
  // Take note of the shapes of the calls to come.
  virtual void prepare(const std::string& dtype, const std::vector<Shape>& shapes,
                       const Dimensions& dimensions) = 0;
  virtual void enqueue(void const* const* inputs, void* const* outputs, void* workspace,
                       void* stream) = 0;
};

std::unique_ptr<OpCall> make_linear_call(const Values& values);
std::unique_ptr<OpCall> make_attention_call(const Values& values);

// Throws Refusal with the library's own words unless `status` is OK.
void require_ok(const char* function, int status);

int32_t kernel_dtype(const std::string& dtype);

}  // namespace awq_edge::plugin
