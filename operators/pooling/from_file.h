#pragma once

#include "operators/pooling/pooling.h"

namespace transpool {

// What the variants share that run a file of the user's.

/// The option `file`: path of the file, from the folder where the program runs. It must be given.
OptionSpec file_option(const std::string& meaning);

/// The option `file` of `variant`. Throws UsageError where there is no such file.
std::string existing_file(const std::string& variant, const Options& options);

/// The reference of the pooling operator that an option names: {"name": ..., options}. Throws UsageError.
std::shared_ptr<const PoolingOperator> reference_of(const Json& value);

/// The file's results as ours. Throws UsageError naming `owner` unless they are values (B, k, d), scores (B, k) and int64
/// positions (B, k) in the dtypes of x and of the scores.
Pooled checked_results(const std::string& owner, const std::vector<at::Tensor>& results, const at::Tensor& x,
                       const at::Tensor& scores, std::int64_t k);

/// Nothing is known about what a file computes: it reads its inputs and writes its outputs, with no FLOPs declared.
Cost cost_of_file(const PoolingShape& shape, const Options& options);

}  // namespace transpool
