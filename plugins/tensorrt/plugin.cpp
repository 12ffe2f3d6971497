#include "plugin.h"

#include <algorithm>
#include <cstring>

#include "log.h"

namespace awq_edge::plugin {
namespace {

using nvinfer1::DataType;

struct NamedType {
  const char* name;
  DataType type;
};
constexpr NamedType kTypes[] = {{"float16", DataType::kHALF}, {"bfloat16", DataType::kBF16},
                                {"float32", DataType::kFLOAT}, {"int8", DataType::kINT8},
                                {"int32", DataType::kINT32}, {"int64", DataType::kINT64}};

// numpy's name of a type; for one that no operator takes, TensorRT's, as its Python module has it.
std::string name_of(DataType type) {
  for (const NamedType& known : kTypes)
    if (known.type == type) return known.name;
  switch (type) {
    case DataType::kBOOL: return "bool";
    case DataType::kUINT8: return "uint8";
    case DataType::kFP8: return "fp8";
    case DataType::kINT4: return "int4";
    default: return "type " + std::to_string(static_cast<int>(type));
  }
}

DataType type_of(const std::string& name) {
  for (const NamedType& known : kTypes)
    if (name == known.name) return known.type;
  throw std::logic_error("no type " + name);
}

Shape shape_of(const nvinfer1::Dims& dims) { return {dims.d, dims.d + dims.nbDims}; }

// Largest or smallest shapes of a profile.
std::vector<Shape> shapes_of(nvinfer1::DynamicPluginTensorDesc const* tensors, int32_t count,
                             nvinfer1::Dims nvinfer1::DynamicPluginTensorDesc::*which) {
  std::vector<Shape> shapes;
  for (int32_t i = 0; i < count; ++i) shapes.push_back(shape_of(tensors[i].*which));
  return shapes;
}

// Runs `body`; what it throws is logged, and `failure` returned: TensorRT takes no exceptions.
template <typename Result, typename Body>
Result guarded(Result failure, const Body& body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    log_error(error.what());
  }
  return failure;
}

}  // namespace

Plugin::Plugin(const Op& op, const Values& values)
    : op_(op),
      values_(values),
      inputs_(op.inputs_of(values)),
      outputs_(op.outputs_of(values)),
      call_(&op == &w4a16_linear() ? make_linear_call(values) : make_attention_call(values)),
      description_(values.describe()) {
  integers_.reserve(op.attributes.size());
  floats_.reserve(op.attributes.size());
  for (const Attribute& attribute : op.attributes) {
    const double value = values.at(attribute.name);
    if (attribute.type == Number::kInt) {
      integers_.push_back(static_cast<int32_t>(value));
      fields_.emplace_back(attribute.name, &integers_.back(), nvinfer1::PluginFieldType::kINT32, 1);
    } else {
      floats_.push_back(static_cast<float>(value));
      fields_.emplace_back(attribute.name, &floats_.back(), nvinfer1::PluginFieldType::kFLOAT32, 1);
    }
  }
  collection_.nbFields = static_cast<int32_t>(fields_.size());
  collection_.fields = fields_.data();
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  return guarded<nvinfer1::IPluginV3*>(nullptr, [&] {
    auto copy = std::make_unique<Plugin>(op_, values_);
    copy->call_->tactic = call_->tactic;
    return copy.release();
  });
}

int32_t Plugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs,
                                nvinfer1::DynamicPluginTensorDesc const*, int32_t) noexcept {
  return guarded(-1, [&] {
    const auto smallest = shapes_of(in, nbInputs, &nvinfer1::DynamicPluginTensorDesc::min);
    const auto largest = shapes_of(in, nbInputs, &nvinfer1::DynamicPluginTensorDesc::max);
    op_.check_shapes(values_, smallest);
    op_.check_shapes(values_, largest);
    call_->configure(name_of(in[0].desc.type), smallest, largest);
    return 0;
  });
}

int32_t Plugin::getOutputDataTypes(DataType* outputTypes, int32_t nbOutputs,
                                   DataType const* inputTypes, int32_t nbInputs) const noexcept {
  return guarded(-1, [&] {
    std::vector<std::string> names;
    for (int32_t i = 0; i < nbInputs; ++i) names.push_back(name_of(inputTypes[i]));
    op_.check_dtypes(values_, names);
    for (int32_t i = 0; i < nbOutputs; ++i)
      outputTypes[i] = type_of(allowed_dtypes(outputs_.at(i), values_, names[0])[0]);
    return 0;
  });
}

int32_t Plugin::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t nbInputs,
                                nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* outputs,
                                int32_t, nvinfer1::IExprBuilder& exprBuilder) noexcept {
  return guarded(-1, [&] {
    write_output_shapes(inputs, nbInputs, outputs, exprBuilder);
    return 0;
  });
}

void Plugin::write_output_shapes(nvinfer1::DimsExprs const* inputs, int32_t count,
                                 nvinfer1::DimsExprs* outputs,
                                 nvinfer1::IExprBuilder& builder) const {
  std::vector<Shape> shapes(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i)
    for (int32_t axis = 0; axis < inputs[i].nbDims; ++axis) {
      const nvinfer1::IDimensionExpr& size = *inputs[i].d[axis];
      shapes[i].push_back(size.isConstant() ? size.getConstantValue() : kUnknown);
    }
  const Dimensions known = op_.check_shapes(values_, shapes);
  // A dimension that is not known yet is the expression of the first input that has it.
  std::map<std::string, nvinfer1::IDimensionExpr const*> expressions;
  for (int32_t i = 0; i < count; ++i) {
    const std::vector<const char*>& names = inputs_[i].shape;
    const size_t rank = shapes[i].size();
    for (size_t back = 1; back <= std::min(names.size(), rank); ++back)
      expressions.emplace(names[names.size() - back], inputs[i].d[rank - back]);
  }
  for (size_t i = 0; i < outputs_.size(); ++i) {
    nvinfer1::DimsExprs& shape = outputs[i];
    shape.nbDims = 0;
    for (const char* name : outputs_[i].shape) {
      if (std::strcmp(name, "...") == 0) {
        for (int32_t axis = 0; axis + 1 < inputs[0].nbDims; ++axis)
          shape.d[shape.nbDims++] = inputs[0].d[axis];
      } else {
        const auto fixed = known.find(name);
        shape.d[shape.nbDims++] =
            fixed == known.end() ? expressions.at(name) : builder.constant(fixed->second);
      }
    }
  }
}

bool Plugin::supportsFormatCombination(int32_t pos,
                                       nvinfer1::DynamicPluginTensorDesc const* inOut,
                                       int32_t nbInputs, int32_t) noexcept {
  return guarded(false, [&] {
    op_.check_count(values_, static_cast<size_t>(nbInputs));
    const nvinfer1::PluginTensorDesc& tensor_desc = inOut[pos].desc;
    if (tensor_desc.format != nvinfer1::TensorFormat::kLINEAR) return false;
    const Tensor& tensor = pos < nbInputs ? inputs_.at(pos) : outputs_.at(pos - nbInputs);
    const auto allowed = allowed_dtypes(tensor, values_, name_of(inOut[0].desc.type));
    return std::find(allowed.begin(), allowed.end(), name_of(tensor_desc.type)) != allowed.end();
  });
}

int32_t Plugin::getNbOutputs() const noexcept { return static_cast<int32_t>(outputs_.size()); }

size_t Plugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t nbInputs,
                                nvinfer1::DynamicPluginTensorDesc const*,
                                int32_t) const noexcept {
  return guarded(size_t{0}, [&] {
    return call_->workspace(name_of(inputs[0].desc.type),
                            shapes_of(inputs, nbInputs, &nvinfer1::DynamicPluginTensorDesc::max));
  });
}

int32_t Plugin::getNbTactics() noexcept {
  return guarded(-1, [&] { return static_cast<int32_t>(call_->tactics().size()); });
}

int32_t Plugin::getValidTactics(int32_t* tactics, int32_t nbTactics) noexcept {
  return guarded(-1, [&] {
    const std::vector<int32_t> valid = call_->tactics();
    std::copy_n(valid.begin(), std::min<size_t>(valid.size(), nbTactics), tactics);
    return 0;
  });
}

int32_t Plugin::setTactic(int32_t tactic) noexcept {
  call_->tactic = tactic;
  return 0;
}

int32_t Plugin::onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nbInputs,
                              nvinfer1::PluginTensorDesc const*, int32_t) noexcept {
  return guarded(-1, [&] {
    std::vector<std::string> types;
    std::vector<Shape> shapes;
    for (int32_t i = 0; i < nbInputs; ++i) {
      types.push_back(name_of(in[i].type));
      shapes.push_back(shape_of(in[i].dims));
    }
    op_.check_dtypes(values_, types);
    call_->prepare(types[0], shapes, op_.check_shapes(values_, shapes));
    return 0;
  });
}

int32_t Plugin::enqueue(nvinfer1::PluginTensorDesc const*, nvinfer1::PluginTensorDesc const*,
                        void const* const* inputs, void* const* outputs, void* workspace,
                        cudaStream_t stream) noexcept {
  return guarded(-1, [&] {
    call_->enqueue(inputs, outputs, workspace, stream);
    return 0;
  });
}

}  // namespace awq_edge::plugin
