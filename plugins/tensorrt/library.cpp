// The exports of libawq_edge_plugin.so: the entry points that TensorRT's loadLibrary and trtexec
// look for, and one for ctypes.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "awq_edge_kernels.h"
#include "creator.h"
#include "log.h"

namespace awq_edge::plugin {
namespace {

nvinfer1::ILoggerFinder* logger_finder = nullptr;

// TensorRT's libraries under the names that they are loaded by. The objects that TensorRT 11 and
// TensorRT-RTX hand out are laid out as in the headers of TensorRT 11, not as in those of 10.
#if NV_TENSORRT_MAJOR >= 11
constexpr const char* kLibraries[] = {"libnvinfer.so.11", "libtensorrt_rtx.so.1"};
#else
constexpr const char* kLibraries[] = {"libnvinfer.so.10"};
#endif

// A library of TensorRT that this process has loaded and that this file was compiled for.
void* tensorrt_library() {
  for (const char* name : kLibraries)
    if (void* handle = dlopen(name, RTLD_LAZY | RTLD_NOLOAD)) return handle;
  return nullptr;
}

Creator& linear_creator() {
  static Creator creator(w4a16_linear());
  return creator;
}

Creator& attention_creator() {
  static Creator creator(cached_attention());
  return creator;
}

// True where the kernels are those that this library was compiled for.
bool kernels_fit() {
  if (awq_edge_abi_version() == AWQ_EDGE_ABI_VERSION &&
      awq_edge_layout_version() == AWQ_EDGE_LAYOUT_VERSION)
    return true;
  log_error("libawq_edge_kernels.so has ABI version " + std::to_string(awq_edge_abi_version()) +
            " and layout version " + std::to_string(awq_edge_layout_version()) +
            ", libawq_edge_plugin.so needs " + std::to_string(AWQ_EDGE_ABI_VERSION) + " and " +
            std::to_string(AWQ_EDGE_LAYOUT_VERSION) + ": build both with awq-edge build-plugins");
  return false;
}

// The registry of the TensorRT that this process has loaded: nothing is linked to one of them, and
// Python loads it without making its symbols global.
nvinfer1::IPluginRegistry* registry() {
  using GetRegistry = nvinfer1::IPluginRegistry* (*)();
  void* const library = tensorrt_library();
  void* const symbol = library == nullptr ? nullptr : dlsym(library, "getPluginRegistry");
  return symbol == nullptr ? nullptr : reinterpret_cast<GetRegistry>(symbol)();
}

// True where a plugin of this name is known already; to ask for it by name would be an error in
// TensorRT's log where it is not.
bool has_creator(nvinfer1::IPluginRegistry& known, const char* name) {
  int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* creators = known.getAllCreators(&count);
  for (int32_t i = 0; i < count; ++i) {
    if (std::strcmp(creators[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") != 0) continue;
    auto& creator = static_cast<nvinfer1::IPluginCreatorV3One&>(*creators[i]);
    if (std::strcmp(creator.getPluginName(), name) == 0 &&
        std::strcmp(creator.getPluginVersion(), kVersion) == 0 &&
        std::strcmp(creator.getPluginNamespace(), kNamespace) == 0)
      return true;
  }
  return false;
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept {
  logger_finder = tensorrt_library() == nullptr ? nullptr : finder;
}

void log_error(const std::string& message) noexcept {
  nvinfer1::ILogger* logger = logger_finder == nullptr ? nullptr : logger_finder->findLogger();
  if (logger != nullptr)
    logger->log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
  else
    std::fprintf(stderr, "[awq_edge] %s\n", message.c_str());
}

}  // namespace awq_edge::plugin

extern "C" {

AWQ_EDGE_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  awq_edge::plugin::set_logger_finder(finder);
}

AWQ_EDGE_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  using namespace awq_edge::plugin;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&linear_creator(),
                                                                &attention_creator()};
  count = kernels_fit() ? 2 : 0;
  return creators;
}

// Register both operators with the TensorRT of this process; a second call changes nothing.
// 0: they are registered. 1: no TensorRT of the version that this was compiled for is loaded. 2: the
// kernels do not fit. 3: TensorRT refused.
AWQ_EDGE_API int awq_edge_plugin_init(void) {
  using namespace awq_edge::plugin;
  nvinfer1::IPluginRegistry* const known = registry();
  if (known == nullptr) return 1;
  int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* creators = getCreators(count);
  if (count == 0) return 2;
  for (int32_t i = 0; i < count; ++i) {
    auto& creator = static_cast<Creator&>(*creators[i]);
    if (!has_creator(*known, creator.getPluginName()) &&
        !known->registerCreator(creator, kNamespace))
      return 3;
  }
  return 0;
}

}  // extern "C"
