#include "operators/pooling/from_file.h"

#include <fmt/format.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <mutex>

namespace transpool {
namespace {

constexpr const char* signature =
    "forward(Tensor x, Tensor scores, int k, Tensor? lengths) -> (Tensor, Tensor, Tensor), lengths may be left out";

/// Whether the types are those of `signature`.
bool has_signature(const c10::FunctionSchema& schema) {
  const auto tensor = c10::TensorType::get();
  const auto& given = schema.arguments();  // the module itself leads
  if (given.size() != 4 && given.size() != 5) return false;
  if (*given[1].type() != *tensor || *given[2].type() != *tensor || *given[3].type() != *c10::IntType::get()) return false;
  if (given.size() == 5 && *given[4].type() != *c10::OptionalType::create(tensor)) return false;
  if (schema.returns().size() != 1) return false;
  const auto result = schema.returns()[0].type()->cast<c10::TupleType>();
  return result && result->elements().size() == 3 &&
         std::all_of(result->elements().begin(), result->elements().end(), [&](const auto& e) { return *e == *tensor; });
}

/// Runs the method `forward` of a TorchScript file. Its parameters, if it has any, follow the device and dtype of x.
class TorchScriptPooling : public PoolingOperator {
 public:
  explicit TorchScriptPooling(const Options& options)
      : file_(existing_file("torchscript", options)), owner_("pooling operator \"torchscript\": file \"" + file_ + "\"") {
    const auto method = load(at::kCPU).find_method("forward");
    if (!method) throw UsageError(owner_ + " has no method forward; allowed: " + signature);
    const auto& schema = method->function().getSchema();
    if (!has_signature(schema))
      throw UsageError(fmt::format("{}: {} is not allowed; allowed: {}", owner_, text(schema), signature));
    takes_lengths_ = schema.arguments().size() == 5;
  }

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    check_pooling_arguments(x, scores, k, lengths);
    std::vector<c10::IValue> arguments = {x, scores, k};
    if (takes_lengths_) arguments.emplace_back(lengths);
    else if (lengths) throw Unsupported(owner_ + " takes no lengths");
    const auto results = module_for(x).get_method("forward")(arguments);
    std::vector<at::Tensor> tensors;
    for (const auto& result : results.toTupleRef().elements()) tensors.push_back(result.toTensor());
    return checked_results(owner_, tensors, x, scores, k);
  }

  std::string backend(const at::Device&) const override { return "torchscript"; }

 private:
  static std::string text(const c10::FunctionSchema& schema) {
    std::ostringstream out;
    out << schema;
    return out.str();
  }

  torch::jit::Module load(const at::Device& device) const {
    try {
      return torch::jit::load(file_, device);
    } catch (const c10::OutOfMemoryError&) {
      throw;
    } catch (const c10::Error& error) {
      const std::string message = error.what_without_backtrace();
      throw UsageError(owner_ + " is no TorchScript file: " + message.substr(0, message.find(". ")));
    }
  }

  torch::jit::Module& module_for(const at::Tensor& x) const {
    const std::scoped_lock lock(mutex_);
    auto& module = modules_[{x.device().str(), x.scalar_type()}];
    if (!module) {
      module = load(x.device());
      module->to(x.scalar_type());
    }
    return *module;
  }

  std::string file_;
  std::string owner_;
  bool takes_lengths_ = false;
  mutable std::mutex mutex_;
  mutable std::map<std::pair<std::string, at::ScalarType>, std::optional<torch::jit::Module>> modules_;
};

const RegisterPooling registration({
    {.name = "torchscript",
     .description = "an operator of yours, from a TorchScript file",
     .source = "the file",
     .options = {file_option(std::string("TorchScript file whose module has ") + signature),
                 {.name = "against",
                  .type = OptionType::variant,
                  .fallback = nullptr,
                  .meaning = "pooling operator that computes the same; null: it is checked against itself in float64",
                  .variant_kind = "pooling",
                  .optional = true}}},
    [](const Options& options) { return std::make_shared<TorchScriptPooling>(options); },
    [](const Options& options) -> std::shared_ptr<const PoolingOperator> {
      if (options.has("against")) return reference_of(options.raw("against"));
      return std::make_shared<TorchScriptPooling>(options);
    },
    cost_of_file,
});

}  // namespace
}  // namespace transpool
