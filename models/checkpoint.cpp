#include "models/checkpoint.h"

#include <torch/serialize.h>

#include <fstream>

namespace transpool {

void save_model(Seq2Seq& model, const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  const auto weights = folder / "model.pt";
  const auto temporary = folder / "model.pt.partial";
  torch::save(model, temporary.string());
  std::filesystem::rename(temporary, weights);
  const auto partial = folder / "model.json.partial";
  std::ofstream(partial) << to_json(model->config()).dump(2) << '\n';
  std::filesystem::rename(partial, folder / "model.json");
}

Seq2Seq load_model(const std::filesystem::path& folder, const torch::Device& device) {
  const auto description = folder / "model.json";
  const Where where(description.string());
  std::ifstream file(description);
  if (!file) where.fail("cannot be read; allowed: a folder that training wrote");
  const auto json = Json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) where.fail("is not JSON");
  Seq2Seq model(model_config_from_json(json, where));
  try {
    torch::load(model, (folder / "model.pt").string(), device);
  } catch (const c10::Error& error) {
    Where((folder / "model.pt").string()).fail(error.what_without_backtrace());
  }
  model->to(device);
  return model;
}

}  // namespace transpool
