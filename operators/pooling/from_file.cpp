#include "operators/pooling/from_file.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>

namespace transpool {

OptionSpec file_option(const std::string& meaning) {
  return {.name = "file", .type = OptionType::text, .fallback = nullptr, .meaning = meaning};
}

std::string existing_file(const std::string& variant, const Options& options) {
  const auto file = options.text("file");
  std::error_code error;
  if (!std::filesystem::is_regular_file(file, error))
    throw UsageError(
        fmt::format("pooling operator \"{}\": file: \"{}\" is not there; allowed: path of a file", variant, file));
  return file;
}

std::shared_ptr<const PoolingOperator> reference_of(const Json& value) {
  const auto selection = pooling_registry().select(value, Where("against"));
  return selection.variant->reference(selection.options);
}

Pooled checked_results(const std::string& owner, const std::vector<at::Tensor>& results, const at::Tensor& x,
                       const at::Tensor& scores, std::int64_t k) {
  if (results.size() != 3)
    throw UsageError(fmt::format("{}: {} results; allowed: values, scores, positions", owner, results.size()));
  const auto expect = [&](const char* what, const at::Tensor& result, const std::vector<std::int64_t>& shape,
                          at::ScalarType dtype) {
    if (result.sizes().vec() != shape || result.scalar_type() != dtype)
      throw UsageError(fmt::format("{}: its {} are {} of shape ({}); allowed: {} of shape ({})", owner, what,
                                   c10::toString(result.scalar_type()), fmt::join(result.sizes(), ", "),
                                   c10::toString(dtype), fmt::join(shape, ", ")));
  };
  expect("values", results[0], {x.size(0), k, x.size(2)}, x.scalar_type());
  expect("scores", results[1], {x.size(0), k}, scores.scalar_type());
  expect("positions", results[2], {x.size(0), k}, at::kLong);
  return {results[0], results[1], results[2]};
}

Cost cost_of_file(const PoolingShape& shape, const Options&) {
  const auto element = static_cast<double>(c10::elementSize(shape.dtype));
  const auto width = static_cast<double>(shape.width);
  const auto inputs = static_cast<double>(shape.batch * shape.length);
  const auto outputs = static_cast<double>(shape.batch * shape.pooled_length);
  Cost cost;
  cost.bytes_read = inputs * (width * element + sizeof(float));
  cost.bytes_written = outputs * (width * element + sizeof(float) + sizeof(std::int64_t));
  return cost;
}

}  // namespace transpool
