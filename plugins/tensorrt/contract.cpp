#include "contract.h"

#include <cstdio>

#include "awq_edge_kernels.h"

namespace awq_edge::plugin {
namespace {

Attribute choice(const char* name, std::vector<int> choices) {
  return {name, Number::kInt, true, 0, std::move(choices)};
}

Attribute flag(const char* name) { return {name, Number::kInt, false, 0, {0, 1}}; }

Attribute count(const char* name, double minimum, double maximum) {
  return {name, Number::kInt, true, 0, {}, minimum, maximum};
}

Dimensions linear_dimensions(const Values& values) {
  const int64_t bits = values.integer("bits");
  const int64_t inputs = values.integer("in_features"), outputs = values.integer("out_features");
  const int64_t blocks = (inputs + 127) / 128;
  const bool pairs = values.integer("epilogue") == AWQ_EDGE_EPILOGUE_SILU_MUL;
  return {{"in_features", inputs},
          {"out_features", outputs},
          {"y_features", pairs ? outputs / 2 : outputs},
          {"tiles", (outputs + 15) / 16},
          {"blocks", blocks},
          {"words", 64 * bits},
          {"groups", blocks * 128 / values.integer("group_size")},
          {"zero_words", bits == 8 ? 4 : 2}};
}

std::string linear_conflicts(const Values& values) {
  const int inputs = values.integer("in_features"), group_size = values.integer("group_size");
  const int outputs = values.integer("out_features");
  if (inputs % group_size)
    return "in_features is " + std::to_string(inputs) + ", must be a multiple of group_size " +
           std::to_string(group_size);
  if (values.integer("epilogue") == AWQ_EDGE_EPILOGUE_SILU_MUL && outputs % 2)
    return "out_features is " + std::to_string(outputs) + ", must be even for epilogue " +
           std::to_string(AWQ_EDGE_EPILOGUE_SILU_MUL);
  return "";
}

Dimensions attention_dimensions(const Values& values) {
  const int64_t heads = values.integer("num_heads"), kv_heads = values.integer("num_kv_heads");
  const int64_t size = values.integer("head_size");
  return {{"num_kv_heads", kv_heads},
          {"head_size", size},
          {"q_features", heads * size},
          {"kv_features", kv_heads * size},
          {"qkv_features", (heads + 2 * kv_heads) * size},
          {"half_rotary", values.integer("rotary_size") / 2}};
}

std::string attention_conflicts(const Values& values) {
  const int heads = values.integer("num_heads"), kv_heads = values.integer("num_kv_heads");
  const int rotary = values.integer("rotary_size"), size = values.integer("head_size");
  if (heads % kv_heads)
    return "num_heads is " + std::to_string(heads) + ", must be a multiple of num_kv_heads " +
           std::to_string(kv_heads);
  if (rotary % 2 || rotary > size)
    return "rotary_size is " + std::to_string(rotary) + ", must be even and at most head_size " +
           std::to_string(size);
  return "";
}

std::string quoted(const std::string& text) { return "\"" + text + "\""; }

std::string number(double value) {
  char buffer[32];
  snprintf(buffer, sizeof buffer, "%.17g", value);
  return buffer;
}

std::string json(const Attribute& attribute) {
  std::string text = "{\"name\": " + quoted(attribute.name) + ", \"type\": " +
                     quoted(attribute.type == Number::kInt ? "int" : "float") + ", \"default\": " +
                     (attribute.required ? "null" : number(attribute.default_value));
  std::vector<std::string> choices;
  for (int value : attribute.choices) choices.push_back(std::to_string(value));
  text += ", \"choices\": [" + join(choices, ", ") + "]";
  const bool ranged = choices.empty();
  text += ", \"minimum\": " + (ranged ? number(attribute.minimum) : "null");
  return text + ", \"maximum\": " + (ranged ? number(attribute.maximum) : "null") + "}";
}

std::string json(const Tensor& tensor) {
  std::vector<std::string> shape;
  for (const char* name : tensor.shape) shape.push_back(quoted(name));
  return "{\"name\": " + quoted(tensor.name) + ", \"dtype\": " + quoted(tensor.dtype) +
         ", \"shape\": [" + join(shape, ", ") + "], \"needs\": " + quoted(tensor.needs) +
         ", \"alias\": " + quoted(tensor.alias) + "}";
}

template <typename T>
std::string json(const std::vector<T>& items) {
  std::vector<std::string> texts;
  for (const T& item : items) texts.push_back(json(item));
  return "[" + join(texts, ", ") + "]";
}

std::string json(const Op& op) {
  std::vector<std::string> rules;
  for (const auto& [name, other] : op.at_least)
    rules.push_back("[" + quoted(name) + ", " + quoted(other) + "]");
  return "{\"name\": " + quoted(op.name) + ", \"attributes\": " + json(op.attributes) +
         ", \"inputs\": " + json(op.inputs) + ", \"outputs\": " + json(op.outputs) +
         ", \"at_least\": [" + join(rules, ", ") + "]}";
}

}  // namespace

const Op& w4a16_linear() {
  static const Op op{
      "W4A16Linear",
      {choice("bits", {3, 4, 8}), choice("group_size", {32, 64, 128}),
       count("in_features", 1, 1 << 24), count("out_features", 1, 1 << 24),
       choice("layout_version", {AWQ_EDGE_LAYOUT_VERSION}), flag("has_zeros"), flag("has_bias"),
       flag("epilogue")},
      {{"x", "activations", {"...", "in_features"}},
       {"qweight", "int32", {"tiles", "blocks", "words"}},
       {"scales", "float16", {"tiles", "groups", "8", "2"}},
       {"zeros", "int32", {"tiles", "groups", "zero_words"}, "has_zeros"},
       {"bias", "activations", {"out_features"}, "has_bias"}},
      {{"y", "activations", {"...", "y_features"}}},
      linear_dimensions,
      linear_conflicts,
      {}};
  return op;
}

const Op& cached_attention() {
  static const std::vector<const char*> cache{"batch", "num_kv_heads", "context", "head_size"};
  static const std::vector<const char*> cache_scales{"batch", "num_kv_heads", "context"};
  static const Op op{
      "CachedAttention",
      {count("num_heads", 1, 1024), count("num_kv_heads", 1, 1024),
       choice("head_size", {32, 64, 96, 128, 256}), count("rotary_size", 0, 256),
       {"scale", Number::kFloat, true, 0, {}, 1.0 / (1 << 20), 1e6},
       {"window", Number::kInt, false, 0, {}, 0, 1 << 30},
       {"soft_cap", Number::kFloat, false, 0, {}, 0, 1e6}, flag("merged_qkv"), flag("qk_norm"),
       {"norm_eps", Number::kFloat, false, 1e-6, {}, 0, 1}, flag("int8_cache"),
       flag("aliased_cache")},
      {{"qkv", "activations", {"batch", "tokens", "qkv_features"}, "merged_qkv"},
       {"q", "activations", {"batch", "tokens", "q_features"}, "!merged_qkv"},
       {"k", "activations", {"batch", "tokens", "kv_features"}, "!merged_qkv"},
       {"v", "activations", {"batch", "tokens", "kv_features"}, "!merged_qkv"},
       {"past_length", "int64", {"batch"}},
       {"cosine", "float32", {"positions", "half_rotary"}, "rotary_size"},
       {"sine", "float32", {"positions", "half_rotary"}, "rotary_size"},
       {"past_key", "cache", cache},
       {"past_value", "cache", cache},
       {"q_norm", "activations", {"head_size"}, "qk_norm"},
       {"k_norm", "activations", {"head_size"}, "qk_norm"},
       {"past_key_scales", "float32", cache_scales, "int8_cache"},
       {"past_value_scales", "float32", cache_scales, "int8_cache"}},
      {{"y", "activations", {"batch", "tokens", "q_features"}},
       {"present_key", "cache", cache, "", "past_key"},
       {"present_value", "cache", cache, "", "past_value"},
       {"present_key_scales", "float32", cache_scales, "int8_cache", "past_key_scales"},
       {"present_value_scales", "float32", cache_scales, "int8_cache", "past_value_scales"}},
      attention_dimensions,
      attention_conflicts,
      {{"positions", "context"}}};
  return op;
}

std::string contract_json() {
  return "{\"version\": " + quoted(kVersion) + ", \"namespace\": " + quoted(kNamespace) +
         ", \"max_rows\": " + std::to_string(kMaxRows) +
         ", \"decode_rows\": " + std::to_string(kDecodeRows) + ", \"ops\": [" +
         json(w4a16_linear()) + ", " + json(cached_attention()) + "]}";
}

}  // namespace awq_edge::plugin
