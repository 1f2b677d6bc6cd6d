#include "models/fused_pooling.h"

#include <fmt/format.h>

namespace transpool {
namespace {

std::map<std::pair<std::string, std::string>, FusedPoolingVariant>& forms() {
  static std::map<std::pair<std::string, std::string>, FusedPoolingVariant> all;
  return all;
}

}  // namespace

RegisterFusedPooling::RegisterFusedPooling(FusedPoolingVariant variant) {
  const std::pair names(variant.scorer, variant.pooling);
  if (!forms().emplace(names, std::move(variant)).second)
    throw std::logic_error(
        fmt::format("scorer \"{}\" and pooling operator \"{}\" have two fused forms", names.first, names.second));
}

const FusedPoolingVariant* find_fused_pooling(const std::string& scorer, const std::string& pooling) {
  const auto found = forms().find({scorer, pooling});
  return found == forms().end() ? nullptr : &found->second;
}

}  // namespace transpool
