#include "op_contract.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace awq_edge::plugin {
namespace {

std::string text(Number type, double value) {
  char buffer[32];
  if (type == Number::kInt)
    snprintf(buffer, sizeof buffer, "%.0f", value);
  else
    snprintf(buffer, sizeof buffer, "%.7g", value);
  return buffer;
}

std::string text(const Attribute& attribute, double value) { return text(attribute.type, value); }

std::string refusal(const Attribute& attribute, double value) {
  const std::vector<int>& choices = attribute.choices;
  if (!choices.empty()) {
    if (std::find(choices.begin(), choices.end(), value) != choices.end()) return "";
    std::vector<std::string> words;
    for (int choice : choices) words.push_back(std::to_string(choice));
    const std::string last = words.back();
    words.pop_back();
    return "must be " + join(words, ", ") + (words.empty() ? "" : " or ") + last;
  }
  if (value < attribute.minimum)
    return "must be at least " + text(attribute, attribute.minimum);
  if (value > attribute.maximum)
    return "must be at most " + text(attribute, attribute.maximum);
  return "";
}

bool is_size(const char* name) { return std::isdigit(static_cast<unsigned char>(name[0])) != 0; }

// Compares `shape` with the tensor's; dimensions that it fixes first are added to `known`.
bool fits(const Tensor& tensor, const Shape& shape, Dimensions& known) {
  const bool open = std::strcmp(tensor.shape.front(), "...") == 0;
  const size_t names = tensor.shape.size() - (open ? 1 : 0);
  if (open ? shape.size() < names : shape.size() != names) return false;
  for (size_t i = 0; i < names; ++i) {
    const char* name = tensor.shape[tensor.shape.size() - names + i];
    const int64_t size = shape[shape.size() - names + i];
    const auto found = known.find(name);
    const int64_t wanted =
        is_size(name) ? std::atoll(name) : found == known.end() ? size : found->second;
    if (size != kUnknown && size != wanted) return false;
    if (size != kUnknown && !is_size(name)) known[name] = size;
  }
  return true;
}

std::string list(const std::vector<const char*>& names) {
  return join(std::vector<std::string>(names.begin(), names.end()), ", ");
}

}  // namespace

std::string join(const std::vector<std::string>& words, const char* separator) {
  std::string joined;
  for (const std::string& word : words) joined += (&word == &words[0] ? "" : separator) + word;
  return joined;
}

std::string join(const Shape& shape) {
  std::vector<std::string> words;
  for (int64_t size : shape) words.push_back(std::to_string(size));
  return join(words, ", ");
}

size_t Values::index(const std::string& name) const {
  for (size_t i = 0; i < attributes_->size(); ++i)
    if (name == (*attributes_)[i].name) return i;
  throw std::logic_error("no attribute " + name);
}

bool Values::has(const std::string& name) const {
  return std::any_of(attributes_->begin(), attributes_->end(),
                     [&](const Attribute& attribute) { return name == attribute.name; });
}

std::string Values::describe() const {
  std::vector<std::string> words;
  for (size_t i = 0; i < attributes_->size(); ++i)
    words.push_back(std::string((*attributes_)[i].name) + "=" +
                    text((*attributes_)[i], values_[i]));
  return join(words, ", ");
}

bool Tensor::present(const Values& values) const {
  if (!*needs) return true;
  return *needs == '!' ? values.at(needs + 1) == 0 : values.at(needs) != 0;
}

Values Op::read(const std::map<std::string, double>& given) const {
  Values values(&attributes);
  for (const auto& [unknown, _] : given) {
    if (values.has(unknown)) continue;
    std::vector<const char*> known;
    for (const Attribute& attribute : attributes) known.push_back(attribute.name);
    throw Refusal(std::string(name) + ": no attribute " + unknown + "; there are " + list(known));
  }
  for (const Attribute& attribute : attributes) {
    const auto found = given.find(attribute.name);
    if (found == given.end() && attribute.required)
      throw Refusal(std::string(name) + ": the attribute " + attribute.name + " is missing");
    const double value = found == given.end() ? attribute.default_value : found->second;
    const std::string why = refusal(attribute, value);
    if (!why.empty())
      throw Refusal(std::string(name) + ": " + attribute.name + " is " + text(attribute, value) +
                    ", " + why);
    values.set(attribute.name,
               attribute.type == Number::kInt ? value : static_cast<float>(value));
  }
  const std::string why = conflict(values);
  if (!why.empty()) throw Refusal(std::string(name) + ": " + why);
  return values;
}

std::vector<Tensor> Op::inputs_of(const Values& values) const {
  std::vector<Tensor> present;
  for (const Tensor& tensor : inputs)
    if (tensor.present(values)) present.push_back(tensor);
  return present;
}

std::vector<Tensor> Op::outputs_of(const Values& values) const {
  std::vector<Tensor> present;
  for (const Tensor& tensor : outputs)
    if (tensor.present(values)) present.push_back(tensor);
  return present;
}

void Op::check_count(const Values& values, size_t count) const {
  std::vector<const char*> wanted;
  for (const Tensor& tensor : inputs_of(values)) wanted.push_back(tensor.name);
  if (count != wanted.size())
    throw Refusal(std::string(name) + ": " + std::to_string(count) + " inputs, must be " +
                  std::to_string(wanted.size()) + " (" + list(wanted) + ") for " +
                  values.describe());
}

void Op::check_dtypes(const Values& values, const std::vector<std::string>& dtypes) const {
  check_count(values, dtypes.size());
  const std::vector<Tensor> tensors = inputs_of(values);
  for (size_t i = 0; i < dtypes.size(); ++i) {
    const std::vector<std::string> allowed = allowed_dtypes(tensors[i], values, dtypes[0]);
    if (std::find(allowed.begin(), allowed.end(), dtypes[i]) == allowed.end())
      throw Refusal(std::string(name) + ": " + tensors[i].name + " is " + dtypes[i] +
                    ", must be " + join(allowed, " or "));
  }
}

Dimensions Op::check_shapes(const Values& values, const std::vector<Shape>& shapes) const {
  check_count(values, shapes.size());
  Dimensions known = dimensions(values);
  const std::vector<Tensor> tensors = inputs_of(values);
  for (size_t i = 0; i < shapes.size(); ++i) {
    const Tensor& tensor = tensors[i];
    if (fits(tensor, shapes[i], known)) continue;
    std::vector<std::string> wanted;
    for (const char* dimension : tensor.shape)
      wanted.push_back(known.count(dimension) ? std::to_string(known[dimension]) : dimension);
    throw Refusal(std::string(name) + ": " + tensor.name + " is [" + join(shapes[i]) +
                  "], must be [" + join(wanted, ", ") + "] = [" + list(tensor.shape) + "] for " +
                  values.describe());
  }
  for (const auto& [dimension, other] : at_least)
    if (known.count(dimension) && known.count(other) && known[dimension] < known[other])
      throw Refusal(std::string(name) + ": " + dimension + " is " +
                    std::to_string(known[dimension]) + ", must be at least " + other +
                    ", which is " + std::to_string(known[other]));
  return known;
}

std::vector<std::string> allowed_dtypes(const Tensor& tensor, const Values& values,
                                        const std::string& first) {
  const std::string dtype = tensor.dtype;
  if (dtype == "cache" && values.integer("int8_cache")) return {"int8"};
  if (dtype != "cache" && dtype != "activations") return {dtype};
  if (first == "float16" || first == "bfloat16") return {first};
  return {"float16", "bfloat16"};
}

}  // namespace awq_edge::plugin
