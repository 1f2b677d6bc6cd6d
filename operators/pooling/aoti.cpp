#include "operators/pooling/from_file.h"

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdlib>
#include <mutex>

namespace transpool {
namespace {

/// Leaves of a serialised pytree: nodes without a type.
std::size_t leaves(const Json& spec) {
  if (!spec.is_object() || !spec.contains("type") || spec["type"].is_null()) return 1;
  std::size_t count = 0;
  for (const auto& child : spec["children_spec"]) count += leaves(child);
  return count;
}

/// Leaves of [version, pytree].
std::size_t leaves_of_text(const std::string& text) {
  const auto spec = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  return spec.is_array() && spec.size() == 2 ? leaves(spec[1]) : 0;
}

/// Runs an AOTInductor package: x, scores and perhaps lengths in, values, scores and positions out, for the k and the
/// shapes it was compiled for. Forward only.
class AotiPooling : public PoolingOperator {
 public:
  explicit AotiPooling(const Options& options)
      : file_(existing_file("aoti", options)), owner_("pooling operator \"aoti\": file \"" + file_ + "\"") {
    // Without this check a compiled package reads past the end of inputs that are smaller than those it was compiled for.
    ::setenv("AOTI_RUNTIME_CHECK_INPUTS", "1", /*overwrite=*/0);
    try {
      loader_ = std::make_unique<torch::inductor::AOTIModelPackageLoader>(file_);
    } catch (const std::exception& error) {
      const std::string message = error.what();
      throw UsageError(owner_ + " is no AOTInductor package that loads here: " + message.substr(0, message.find('\n')));
    }
    const auto call = loader_->get_call_spec();
    const auto inputs = leaves_of_text(call.at(0));
    const auto outputs = leaves_of_text(call.at(1));
    if ((inputs != 2 && inputs != 3) || outputs != 3)
      throw UsageError(
          fmt::format("{}: {} inputs and {} outputs are not allowed; allowed: x, scores and perhaps lengths in, "
                      "values, scores and positions out",
                      owner_, inputs, outputs));
    takes_lengths_ = inputs == 3;
    for (const auto& [key, value] : loader_->get_metadata())
      if (key == "AOTI_DEVICE_KEY") device_ = value;
  }

  Pooled forward(const at::Tensor& x, const at::Tensor& scores, std::int64_t k,
                 const std::optional<at::Tensor>& lengths) const override {
    check_pooling_arguments(x, scores, k, lengths);
    if (!device_.empty() && x.device().type() != at::Device(device_).type())
      throw Unsupported(fmt::format("{} was compiled for {}, not for {}", owner_, device_, x.device().str()));
    if (takes_lengths_ != lengths.has_value())
      throw Unsupported(owner_ + (lengths ? " takes no lengths" : " takes lengths, none are given"));
    const at::NoGradGuard no_gradient;
    std::vector<at::Tensor> inputs = {x.detach().contiguous(), scores.detach().contiguous()};
    if (lengths) inputs.push_back(lengths->contiguous());
    return checked_results(owner_, run(inputs), x, scores, k);
  }

  bool passes_score_gradient() const override { return false; }
  std::string backend(const at::Device&) const override { return "aoti"; }

 private:
  std::vector<at::Tensor> run(const std::vector<at::Tensor>& inputs) const {
    const std::scoped_lock lock(mutex_);
    try {
      return loader_->run(inputs);
    } catch (const std::exception&) {
      // The package tells the reason to standard error alone.
      throw UsageError(
          fmt::format("{} failed on x {} ({}) and scores {} ({}); allowed: the dtypes and shapes that it was "
                      "compiled for",
                      owner_, dtype_name(inputs[0].scalar_type()), fmt::join(inputs[0].sizes(), ", "),
                      dtype_name(inputs[1].scalar_type()), fmt::join(inputs[1].sizes(), ", ")));
    }
  }

  std::string file_;
  std::string owner_;
  std::string device_;
  bool takes_lengths_ = false;
  mutable std::mutex mutex_;
  std::unique_ptr<torch::inductor::AOTIModelPackageLoader> loader_;
};

const RegisterPooling registration({
    {.name = "aoti",
     .description = "an operator of yours, from an AOTInductor package; forward only",
     .source = "the file",
     .options = {file_option("AOTInductor package (.pt2) of (x, scores[, lengths]) -> (values, scores, positions)"),
                 {.name = "against",
                  .type = OptionType::variant,
                  .fallback = nullptr,
                  .meaning = "pooling operator that computes the same: the package itself cannot run in another dtype",
                  .variant_kind = "pooling"}},
     .capabilities = {.differentiable = false}},
    [](const Options& options) { return std::make_shared<AotiPooling>(options); },
    [](const Options& options) { return reference_of(options.raw("against")); },
    cost_of_file,
});

}  // namespace
}  // namespace transpool
