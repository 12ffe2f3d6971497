#include "creator.h"

#include "log.h"
#include "plugin.h"

namespace awq_edge::plugin {
namespace {

using nvinfer1::PluginFieldType;

// The number in a field; TensorRT's parser makes them from the node's attributes.
double value_of(const Op& op, const nvinfer1::PluginField& field) {
  Number kind = Number::kInt;
  for (const Attribute& attribute : op.attributes)
    if (std::string(field.name) == attribute.name) kind = attribute.type;
  if (field.length == 1 && field.data != nullptr) {
    if (kind == Number::kInt && field.type == PluginFieldType::kINT32)
      return *static_cast<const int32_t*>(field.data);
    if (kind == Number::kInt && field.type == PluginFieldType::kINT64)
      return static_cast<double>(*static_cast<const int64_t*>(field.data));
    if (kind == Number::kFloat && field.type == PluginFieldType::kFLOAT32)
      return *static_cast<const float*>(field.data);
    if (kind == Number::kFloat && field.type == PluginFieldType::kFLOAT64)
      return *static_cast<const double*>(field.data);
  }
  static const char* const kNames[] = {"FLOAT16", "FLOAT32", "FLOAT64", "INT8", "INT16", "INT32",
                                       "CHAR",    "DIMS",    "UNKNOWN", "BF16", "INT64"};
  const size_t type = static_cast<size_t>(field.type);
  throw Refusal(std::string(op.name) + ": " + field.name + " is " + std::to_string(field.length) +
                " x " + (type < std::size(kNames) ? kNames[type] : std::to_string(type)) +
                ", must be one " + (kind == Number::kInt ? "INT32 or INT64" : "FLOAT32 or FLOAT64"));
}

}  // namespace

Creator::Creator(const Op& op) : op_(op) {
  for (const Attribute& attribute : op.attributes)
    fields_.emplace_back(attribute.name, nullptr,
                         attribute.type == Number::kInt ? PluginFieldType::kINT32
                                                        : PluginFieldType::kFLOAT32,
                         0);
  collection_.nbFields = static_cast<int32_t>(fields_.size());
  collection_.fields = fields_.data();
}

nvinfer1::IPluginV3* Creator::createPlugin(nvinfer1::AsciiChar const* name,
                                           nvinfer1::PluginFieldCollection const* fc,
                                           nvinfer1::TensorRTPhase) noexcept {
  try {
    std::map<std::string, double> given;
    for (int32_t i = 0; fc != nullptr && i < fc->nbFields; ++i)
      given[fc->fields[i].name] = value_of(op_, fc->fields[i]);
    return new Plugin(op_, op_.read(given));
  } catch (const std::exception& error) {
    const bool named = name != nullptr && *name != '\0';
    log_error(named ? std::string(name) + ": " + error.what() : error.what());
  }
  return nullptr;
}

}  // namespace awq_edge::plugin
