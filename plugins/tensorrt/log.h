// Errors of the plugin go to TensorRT's logger where it gave one, else to stderr.
#pragma once

#include <NvInferRuntime.h>

#include <string>

namespace awq_edge::plugin {

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;
void log_error(const std::string& message) noexcept;

}  // namespace awq_edge::plugin
