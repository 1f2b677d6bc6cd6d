#pragma once

#include "models/seq2seq.h"

#include <filesystem>

namespace transpool {

/// Writes `folder`/model.json and `folder`/model.pt, each atomically.
void save_model(Seq2Seq& model, const std::filesystem::path& folder);

/// Rebuilds the model that save_model wrote, on `device`. Throws UsageError naming the file and what is wrong.
Seq2Seq load_model(const std::filesystem::path& folder, const torch::Device& device);

}  // namespace transpool
