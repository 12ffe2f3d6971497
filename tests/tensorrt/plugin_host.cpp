// What TensorRT does to a plugin, without TensorRT: loads libawq_edge_plugin.so, makes a plugin of
// fields, configures it and enqueues. For ctypes; types are TensorRT's DataType as numbers.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

std::vector<DynamicPluginTensorDesc> described(int32_t count, const int32_t* types,
                                               const int32_t* ranks, const int64_t* smallest,
                                               const int64_t* largest) {
  std::vector<DynamicPluginTensorDesc> tensors(count);
  for (int32_t i = 0; i < count; ++i) {
    DynamicPluginTensorDesc& tensor = tensors[i];
    tensor.desc.type = static_cast<DataType>(types[i]);
    tensor.desc.format = TensorFormat::kLINEAR;
    tensor.desc.dims.nbDims = tensor.min.nbDims = tensor.max.nbDims = ranks[i];
    for (int32_t axis = 0; axis < ranks[i]; ++axis) {
      tensor.min.d[axis] = *smallest++;
      tensor.max.d[axis] = *largest++;
      tensor.desc.dims.d[axis] =
          tensor.min.d[axis] == tensor.max.d[axis] ? tensor.min.d[axis] : -1;
    }
  }
  return tensors;
}

IPluginV3OneBuild* build(IPluginV3* plugin) {
  return static_cast<IPluginV3OneBuild*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
}

IPluginV3OneRuntime* runtime(IPluginV3* plugin) {
  return static_cast<IPluginV3OneRuntime*>(
      plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

std::string text_of(const PluginFieldCollection& fields) {
  std::string text;
  for (int32_t i = 0; i < fields.nbFields; ++i) {
    const PluginField& field = fields.fields[i];
    char value[64] = "";
    if (field.data && field.type == PluginFieldType::kINT32)
      snprintf(value, sizeof value, "=%d", *static_cast<const int32_t*>(field.data));
    if (field.data && field.type == PluginFieldType::kFLOAT32)
      snprintf(value, sizeof value, "=%.7g", *static_cast<const float*>(field.data));
    text += std::string(i ? ", " : "") + field.name + value;
  }
  return text;
}

}  // namespace

extern "C" {

// The creator of `op` in a plugin library; null where it has none.
void* host_creator(const char* library, const char* op) {
  void* handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    fprintf(stderr, "%s\n", dlerror());
    return nullptr;
  }
  using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
  auto get = reinterpret_cast<GetCreators>(dlsym(handle, "getCreators"));
  int32_t count = 0;
  IPluginCreatorInterface* const* creators = get == nullptr ? nullptr : get(count);
  for (int32_t i = 0; i < count; ++i) {
    auto* creator = static_cast<IPluginCreatorV3One*>(creators[i]);
    if (std::strcmp(creator->getPluginName(), op) == 0) return creator;
  }
  return nullptr;
}

const char* host_declared_fields(void* creator) {
  static std::string text;
  text = text_of(*static_cast<IPluginCreatorV3One*>(creator)->getFieldNames());
  return text.c_str();
}

void* host_create(void* creator, int32_t count, const char* const* names, const int32_t* types,
                  const double* values, int32_t phase) {
  std::vector<int32_t> integers(count);
  std::vector<float> floats(count);
  std::vector<PluginField> fields;
  for (int32_t i = 0; i < count; ++i) {
    integers[i] = static_cast<int32_t>(values[i]);
    floats[i] = static_cast<float>(values[i]);
    const auto type = static_cast<PluginFieldType>(types[i]);
    const void* data = type == PluginFieldType::kFLOAT32 ? static_cast<void*>(&floats[i])
                                                         : static_cast<void*>(&integers[i]);
    fields.emplace_back(names[i], data, type, 1);
  }
  const PluginFieldCollection collection{count, fields.data()};
  return static_cast<IPluginCreatorV3One*>(creator)->createPlugin(
      "node", &collection, static_cast<TensorRTPhase>(phase));
}

// A clone takes its place, as in an execution context.
void* host_attach(void* plugin) {
  auto* const original = static_cast<IPluginV3*>(plugin);
  IPluginV3* const attached = runtime(original)->attachToContext(nullptr);
  delete original;
  return attached;
}

void host_destroy(void* plugin) { delete static_cast<IPluginV3*>(plugin); }

const char* host_serialized_fields(void* plugin) {
  static std::string text;
  text = text_of(*runtime(static_cast<IPluginV3*>(plugin))->getFieldsToSerialize());
  return text.c_str();
}

const char* host_timing_cache_id(void* plugin) {
  return build(static_cast<IPluginV3*>(plugin))->getTimingCacheID();
}

int32_t host_output_types(void* plugin, int32_t count, const int32_t* types, int32_t* found) {
  IPluginV3OneBuild* const asked = build(static_cast<IPluginV3*>(plugin));
  std::vector<DataType> inputs, outputs(asked->getNbOutputs());
  for (int32_t i = 0; i < count; ++i) inputs.push_back(static_cast<DataType>(types[i]));
  if (asked->getOutputDataTypes(outputs.data(), static_cast<int32_t>(outputs.size()),
                                inputs.data(), count) != 0)
    return -1;
  for (size_t i = 0; i < outputs.size(); ++i) found[i] = static_cast<int32_t>(outputs[i]);
  return static_cast<int32_t>(outputs.size());
}

int32_t host_supports(void* plugin, int32_t position, int32_t inputs, int32_t outputs,
                      const int32_t* types, int32_t format) {
  std::vector<DynamicPluginTensorDesc> tensors(inputs + outputs);
  for (int32_t i = 0; i < inputs + outputs; ++i) {
    tensors[i].desc.type = static_cast<DataType>(types[i]);
    tensors[i].desc.format = static_cast<TensorFormat>(i == position ? format : 0);
  }
  return build(static_cast<IPluginV3*>(plugin))
      ->supportsFormatCombination(position, tensors.data(), inputs, outputs);
}

int32_t host_configure(void* plugin, int32_t count, const int32_t* types, const int32_t* ranks,
                       const int64_t* smallest, const int64_t* largest) {
  const auto tensors = described(count, types, ranks, smallest, largest);
  return build(static_cast<IPluginV3*>(plugin))
      ->configurePlugin(tensors.data(), count, nullptr, 0);
}

int32_t host_tactics(void* plugin, int32_t* tactics) {
  IPluginV3OneBuild* const asked = build(static_cast<IPluginV3*>(plugin));
  const int32_t count = asked->getNbTactics();
  return count > 0 && asked->getValidTactics(tactics, count) != 0 ? -1 : count;
}

uint64_t host_workspace(void* plugin, int32_t count, const int32_t* types, const int32_t* ranks,
                        const int64_t* largest) {
  const auto tensors = described(count, types, ranks, largest, largest);
  return build(static_cast<IPluginV3*>(plugin))
      ->getWorkspaceSize(tensors.data(), count, nullptr, 0);
}

int32_t host_set_tactic(void* plugin, int32_t tactic) {
  return runtime(static_cast<IPluginV3*>(plugin))->setTactic(tactic);
}

int32_t host_shape_change(void* plugin, int32_t count, const int32_t* types, const int32_t* ranks,
                          const int64_t* shapes) {
  const auto tensors = described(count, types, ranks, shapes, shapes);
  std::vector<PluginTensorDesc> plain;
  for (const DynamicPluginTensorDesc& tensor : tensors) plain.push_back(tensor.desc);
  return runtime(static_cast<IPluginV3*>(plugin))->onShapeChange(plain.data(), count, nullptr, 0);
}

int32_t host_enqueue(void* plugin, void const* const* inputs, void* const* outputs,
                     void* workspace, void* stream) {
  return runtime(static_cast<IPluginV3*>(plugin))
      ->enqueue(nullptr, nullptr, inputs, outputs, workspace, static_cast<cudaStream_t>(stream));
}

}  // extern "C"
