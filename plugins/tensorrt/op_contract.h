// An operator's contract, and the checks of attributes, shapes and dtypes against it: as in
// awq_edge/tensorrt/op_contract.py, with the same words where something is refused.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace awq_edge::plugin {

// A node that cannot be: the message has the values.
struct Refusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

constexpr int64_t kUnknown = -1;

enum class Number { kInt, kFloat };

struct Attribute {
  const char* name;
  Number type;
  bool required;
  double default_value = 0;
  std::vector<int> choices = {};  // the only values; empty: minimum to maximum
  double minimum = 0;
  double maximum = 0;
};

// The attributes of one node, all of them, in the contract's order.
class Values {
 public:
  explicit Values(const std::vector<Attribute>* attributes)
      : attributes_(attributes), values_(attributes->size()) {}

  double at(const std::string& name) const { return values_[index(name)]; }
  int32_t integer(const std::string& name) const { return static_cast<int32_t>(at(name)); }
  bool has(const std::string& name) const;
  void set(const std::string& name, double value) { values_[index(name)] = value; }
  // "bits=4, group_size=128": for messages, timing-cache keys and engine inspectors.
  std::string describe() const;

 private:
  size_t index(const std::string& name) const;

  const std::vector<Attribute>* attributes_;
  std::vector<double> values_;
};

using Dimensions = std::map<std::string, int64_t>;
using Shape = std::vector<int64_t>;

struct Tensor {
  const char* name;
  const char* dtype;               // "activations", "cache", or the name that numpy has for it
  std::vector<const char*> shape;  // names or sizes of dimensions, "..." for any leading ones
  const char* needs = "";          // the attribute without (!: with) which it is left out
  const char* alias = "";          // of an output: the input that it may share memory with

  bool present(const Values& values) const;
};

struct Op {
  const char* name;
  std::vector<Attribute> attributes;
  std::vector<Tensor> inputs;
  std::vector<Tensor> outputs;
  Dimensions (*dimensions)(const Values&);
  std::string (*conflict)(const Values&);  // "" where the attributes go together
  std::vector<std::pair<const char*, const char*>> at_least;

  // Every attribute, defaults included. Throws Refusal.
  Values read(const std::map<std::string, double>& given) const;
  std::vector<Tensor> inputs_of(const Values& values) const;
  std::vector<Tensor> outputs_of(const Values& values) const;
  void check_count(const Values& values, size_t count) const;
  void check_dtypes(const Values& values, const std::vector<std::string>& dtypes) const;
  // The dimensions by name; kUnknown fits everywhere. Throws Refusal with both shapes.
  Dimensions check_shapes(const Values& values, const std::vector<Shape>& shapes) const;
};

// The dtypes that `tensor` may have, where the node's first input is `first`.
std::vector<std::string> allowed_dtypes(const Tensor& tensor, const Values& values,
                                        const std::string& first);

std::string join(const std::vector<std::string>& words, const char* separator);
std::string join(const Shape& shape);

}  // namespace awq_edge::plugin
