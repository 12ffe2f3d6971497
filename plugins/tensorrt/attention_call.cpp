// awq_edge_cached_attention for one node. The kernels work in place: where present is other memory
// than past, past is copied there first.
#include <cstring>

#include "awq_edge_kernels.h"
#include "op_call.h"

namespace awq_edge::plugin {
namespace {

class AttentionCall final : public OpCall {
 public:
  explicit AttentionCall(const Values& values)
      : values_(values),
        inputs_(cached_attention().inputs_of(values)),
        outputs_(cached_attention().outputs_of(values)) {}

  // Nothing depends on the profile but the workspace.
  void configure(const std::string&, const std::vector<Shape>&,
                 const std::vector<Shape>&) override {}

  std::vector<int32_t> tactics() const override { return {}; }

  size_t workspace(const std::string& dtype, const std::vector<Shape>& largest) const override {
    return bytes_for(describe(dtype, cached_attention().check_shapes(values_, largest)));
  }

  void prepare(const std::string& dtype, const std::vector<Shape>& shapes,
               const Dimensions& dimensions) override {
    call_ = describe(dtype, dimensions);
    bytes_ = bytes_for(call_);
    copies_.clear();
    for (size_t output = 0; output < outputs_.size(); ++output) {
      if (!*outputs_[output].alias) continue;
      const size_t input = index_of(outputs_[output].alias);
      size_t bytes = std::strcmp(outputs_[output].dtype, "float32") == 0 ? 4
                     : values_.integer("int8_cache")                     ? 1
                                                                         : 2;
      for (int64_t size : shapes[input]) bytes *= static_cast<size_t>(size);
      copies_.push_back({input, output, bytes});
    }
  }

  void enqueue(void const* const* inputs, void* const* outputs, void* workspace,
               void* stream) override {
    if (call_.batch == 0 || call_.tokens == 0) return;
    for (const Copy& copy : copies_)
      if (inputs[copy.input] != outputs[copy.output])
        require_ok("awq_edge_copy", awq_edge_copy(inputs[copy.input], outputs[copy.output],
                                                  copy.bytes, stream));
    point(inputs, outputs);
    if (bytes_)
      require_ok("awq_edge_clear_counters", awq_edge_clear_counters(workspace, stream));
    require_ok("awq_edge_cached_attention",
               awq_edge_cached_attention(&call_, bytes_ ? workspace : nullptr, bytes_, stream));
  }

 private:
  struct Copy {
    size_t input, output, bytes;
  };

  void point(void const* const* inputs, void* const* outputs) {
    if (values_.integer("merged_qkv")) {
      const char* row = static_cast<const char*>(inputs[0]);
      const int64_t head_bytes = 2 * values_.integer("head_size");
      call_.q = row;
      call_.k = row + values_.integer("num_heads") * head_bytes;
      call_.v = static_cast<const char*>(call_.k) + values_.integer("num_kv_heads") * head_bytes;
    }
    for (size_t i = 0; i < inputs_.size(); ++i) {
      const std::string name = inputs_[i].name;
      if (name == "q") call_.q = inputs[i];
      if (name == "k") call_.k = inputs[i];
      if (name == "v") call_.v = inputs[i];
      if (name == "past_length") call_.past_length = static_cast<const int64_t*>(inputs[i]);
      if (name == "cosine") call_.cosine = static_cast<const float*>(inputs[i]);
      if (name == "sine") call_.sine = static_cast<const float*>(inputs[i]);
      if (name == "q_norm") call_.q_norm = inputs[i];
      if (name == "k_norm") call_.k_norm = inputs[i];
    }
    for (size_t i = 0; i < outputs_.size(); ++i) {
      const std::string name = outputs_[i].name;
      if (name == "y") call_.y = outputs[i];
      if (name == "present_key") call_.key_cache = outputs[i];
      if (name == "present_value") call_.value_cache = outputs[i];
      if (name == "present_key_scales") call_.key_scales = static_cast<float*>(outputs[i]);
      if (name == "present_value_scales") call_.value_scales = static_cast<float*>(outputs[i]);
    }
  }

  size_t index_of(const std::string& input) const {
    for (size_t i = 0; i < inputs_.size(); ++i)
      if (input == inputs_[i].name) return i;
    throw std::logic_error("no input " + input);
  }

  static size_t bytes_for(const awq_edge_attention& call) {
    size_t bytes = 0;
    require_ok("awq_edge_cached_attention_workspace",
               awq_edge_cached_attention_workspace(&call, &bytes));
    return bytes;
  }

  awq_edge_attention describe(const std::string& dtype, const Dimensions& dimensions) const {
    awq_edge_attention call{};
    call.dtype = kernel_dtype(dtype);
    call.kv_dtype = values_.integer("int8_cache") ? AWQ_EDGE_INT8 : call.dtype;
    call.batch = static_cast<int32_t>(dimensions.at("batch"));
    call.tokens = static_cast<int32_t>(dimensions.at("tokens"));
    call.context = static_cast<int32_t>(dimensions.at("context"));
    call.num_heads = values_.integer("num_heads");
    call.num_kv_heads = values_.integer("num_kv_heads");
    call.head_size = values_.integer("head_size");
    call.rotary_size = values_.integer("rotary_size");
    call.window = values_.integer("window");
    call.scale = static_cast<float>(values_.at("scale"));
    call.soft_cap = static_cast<float>(values_.at("soft_cap"));
    call.norm_eps = static_cast<float>(values_.at("norm_eps"));
    const bool merged = values_.integer("merged_qkv") != 0;
    call.q_stride = dimensions.at(merged ? "qkv_features" : "q_features");
    call.k_stride = call.v_stride = dimensions.at(merged ? "qkv_features" : "kv_features");
    return call;
  }

  Values values_;
  std::vector<Tensor> inputs_, outputs_;
  awq_edge_attention call_{};
  size_t bytes_ = 0;
  std::vector<Copy> copies_;
};

}  // namespace

std::unique_ptr<OpCall> make_attention_call(const Values& values) {
  return std::make_unique<AttentionCall>(values);
}

}  // namespace awq_edge::plugin
