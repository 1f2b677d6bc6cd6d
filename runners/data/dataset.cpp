#include "runners/data/dataset.h"

#include "runners/data/named_entries.h"

namespace transpool {
namespace {

NamedEntries<DatasetEntry>& entries() {
  static NamedEntries<DatasetEntry> all("data set");
  return all;
}

}  // namespace

RegisterDataset::RegisterDataset(DatasetEntry entry) { entries().add(std::move(entry)); }

const std::map<std::string, DatasetEntry>& datasets() { return entries().all(); }

const DatasetEntry& find_dataset(const std::string& name, const Where& where) { return entries().find(name, where); }

std::pair<const DatasetEntry*, Options> select_dataset(const Json& value, const Where& where) {
  return entries().select(value, where);
}

}  // namespace transpool
