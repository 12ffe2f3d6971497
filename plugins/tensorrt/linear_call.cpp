// awq_edge_w4a16_linear for one node.
#include <algorithm>

#include "awq_edge_kernels.h"
#include "op_call.h"

namespace awq_edge::plugin {

void require_ok(const char* function, int status) {
  if (status == AWQ_EDGE_OK) return;
  const std::string last = awq_edge_last_error();
  throw Refusal(std::string(function) + ": " +
                (last.empty() ? awq_edge_status_message(status) : last) + " (status " +
                std::to_string(status) + ")");
}

int32_t kernel_dtype(const std::string& dtype) {
  return dtype == "bfloat16" ? AWQ_EDGE_BFLOAT16 : AWQ_EDGE_FLOAT16;
}

namespace {

// The rows of x; throws where they are more than one call takes.
int32_t rows_of(const Shape& shape) {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  if (rows > AWQ_EDGE_MAX_ROWS)
    throw Refusal("W4A16Linear: x is [" + join(shape) + "], " + std::to_string(rows) +
                  " rows, must be at most " + std::to_string(AWQ_EDGE_MAX_ROWS) +
                  ": build with a smaller maximum of batch times tokens");
  return static_cast<int32_t>(rows);
}

// A profile of decode only has the tactic for it, one of prefill only may choose between the
// prefill tactics. One that spans both leaves the choice to the library, call by call: TensorRT
// would time at the optimum shape and keep the answer for all.
class LinearCall final : public OpCall {
 public:
  explicit LinearCall(const Values& values)
      : values_(values), inputs_(w4a16_linear().inputs_of(values)) {}

  void configure(const std::string& dtype, const std::vector<Shape>& smallest,
                 const std::vector<Shape>& largest) override {
    dtype_ = dtype;
    least_ = rows_of(smallest[0]);
    most_ = rows_of(largest[0]);
  }

  std::vector<int32_t> tactics() const override {
    if (most_ <= AWQ_EDGE_DECODE_ROWS) return {AWQ_EDGE_TACTIC_DECODE};
    if (least_ <= AWQ_EDGE_DECODE_ROWS) return {};
    std::vector<int32_t> tactics{AWQ_EDGE_TACTIC_GEMM};
    const awq_edge_w4a16_weight weight = describe(dtype_);
    size_t bytes = 0;
    if (awq_edge_w4a16_workspace(&weight, most_, AWQ_EDGE_TACTIC_CUBLASLT, &bytes) == AWQ_EDGE_OK)
      tactics.push_back(AWQ_EDGE_TACTIC_CUBLASLT);
    return tactics;
  }

  size_t workspace(const std::string& dtype, const std::vector<Shape>& largest) const override {
    std::vector<int32_t> candidates = tactics();
    // Where there are tactics to choose from, one of them will be set.
    if (candidates.empty() || tactic != AWQ_EDGE_TACTIC_AUTO) candidates.push_back(tactic);
    size_t most = 0;
    for (int32_t candidate : candidates)
      most = std::max(most, bytes_for(describe(dtype), rows_of(largest[0]), candidate));
    return most;
  }

  void prepare(const std::string& dtype, const std::vector<Shape>& shapes,
               const Dimensions&) override {
    weight_ = describe(dtype);
    rows_ = rows_of(shapes[0]);
    measure();
  }

  void enqueue(void const* const* inputs, void* const* outputs, void* workspace,
               void* stream) override {
    if (rows_ == 0) return;
    if (sized_for_ != tactic) measure();
    const void* x = nullptr;
    for (size_t i = 0; i < inputs_.size(); ++i) {
      const std::string name = inputs_[i].name;
      if (name == "x") x = inputs[i];
      if (name == "qweight") weight_.qweight = static_cast<const uint32_t*>(inputs[i]);
      if (name == "scales") weight_.scales = static_cast<const uint16_t*>(inputs[i]);
      if (name == "zeros") weight_.zeros = static_cast<const uint32_t*>(inputs[i]);
      if (name == "bias") weight_.bias = inputs[i];
    }
    if (bytes_ > AWQ_EDGE_COUNTER_BYTES)  // else nothing is split, and the counters are not touched
      require_ok("awq_edge_clear_counters", awq_edge_clear_counters(workspace, stream));
    require_ok("awq_edge_w4a16_linear",
               awq_edge_w4a16_linear(&weight_, x, outputs[0], rows_, tactic,
                                     bytes_ ? workspace : nullptr, bytes_, stream));
  }

 private:
  // The workspace of the calls to come. TensorRT may set the tactic before or after the shapes.
  void measure() {
    bytes_ = rows_ ? bytes_for(weight_, rows_, tactic) : 0;
    sized_for_ = tactic;
  }

  static size_t bytes_for(const awq_edge_w4a16_weight& weight, int32_t rows, int32_t tactic) {
    size_t bytes = 0;
    require_ok("awq_edge_w4a16_workspace",
               awq_edge_w4a16_workspace(&weight, rows, tactic, &bytes));
    return bytes;
  }

  awq_edge_w4a16_weight describe(const std::string& dtype) const {
    awq_edge_w4a16_weight weight{};
    weight.bits = values_.integer("bits");
    weight.group_size = values_.integer("group_size");
    weight.in_features = values_.integer("in_features");
    weight.out_features = values_.integer("out_features");
    weight.epilogue = values_.integer("epilogue");
    weight.dtype = kernel_dtype(dtype);
    return weight;
  }

  Values values_;
  std::vector<Tensor> inputs_;
  std::string dtype_ = "float16";
  int32_t least_ = 0, most_ = 0;  // rows of the profile
  awq_edge_w4a16_weight weight_{};
  int32_t rows_ = 0;
  size_t bytes_ = 0;
  int32_t sized_for_ = AWQ_EDGE_TACTIC_AUTO;
};

}  // namespace

std::unique_ptr<OpCall> make_linear_call(const Values& values) {
  return std::make_unique<LinearCall>(values);
}

}  // namespace awq_edge::plugin
