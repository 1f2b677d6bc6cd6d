#include "runners/report/compare.h"

#include "runners/report/display.h"
#include "runners/rouge/bootstrap.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

namespace transpool {
namespace {

constexpr double negligible = 0.005;  ///< relative difference that nobody acts on
constexpr double large = 0.05;        ///< relative difference that a wide interval must not hide as SAME
constexpr std::uint64_t bootstrap_seed = 0;

std::string percent(double share) { return fmt::format("{:.3g} %", 100 * share); }

double relative_difference(double base, double current) {
  if (base == current) return 0;
  if (base == 0) return current > 0 ? std::numeric_limits<double>::infinity() : -std::numeric_limits<double>::infinity();
  return (current - base) / std::abs(base);
}

bool finite(const Summary& summary) {
  return std::isfinite(summary.value) &&
         (!summary.interval || (std::isfinite(summary.interval->first) && std::isfinite(summary.interval->second)));
}

/// Half the interquartile range of repeated measurements over their median; nothing where the samples are no repetitions
/// (scores of different documents differ by more than noise) or too few.
std::optional<double> noise(const Summary& summary) {
  if (summary.statistic != "median" || summary.samples.size() < 4 || summary.value == 0) return std::nullopt;
  auto sorted = summary.samples;
  std::sort(sorted.begin(), sorted.end());
  const auto quartile = [&](double share) {
    const double place = share * static_cast<double>(sorted.size() - 1);
    const auto below = static_cast<std::size_t>(place);
    const auto above = std::min(below + 1, sorted.size() - 1);
    return sorted[below] + (place - static_cast<double>(below)) * (sorted[above] - sorted[below]);
  };
  return (quartile(0.75) - quartile(0.25)) / 2 / std::abs(summary.value);
}

Change direction(const Summary& base, const Summary& current) {
  return (current.value > base.value) == base.higher_is_better ? Change::fast : Change::slow;
}

bool paired(const Summary& base, const Summary& current) {
  return base.statistic == "mean" && current.statistic == "mean" && base.samples.size() > 1 &&
         base.samples.size() == current.samples.size();
}

/// Scores of the same documents or draws: what makes one of them hard is hard for both, and cancels.
Judgement judge_paired(const Summary& base, const Summary& current) {
  const auto difference = paired_bootstrap_difference(current.samples, base.samples, bootstrap_seed);
  const auto interval = fmt::format("paired interval of the difference {:.3g} to {:.3g}", difference.low, difference.high);
  if (difference.low <= 0 && difference.high >= 0) return {Change::same, interval + " holds 0"};
  return {direction(base, current), interval + " leaves 0 out"};
}

Judgement judge_overlapping(const Summary& base, const Summary& current, double relative) {
  const auto holds = [](const Summary& one, const Summary& other) {
    return one.interval->first <= other.value && other.value <= one.interval->second;
  };
  if (std::abs(relative) <= large || holds(base, current) || holds(current, base))
    return {Change::same, "the intervals overlap"};
  return {Change::ambiguous,
          fmt::format("the intervals overlap, but only because they are wide: the difference is over {}", percent(large))};
}

Judgement judge_apart(const Summary& base, const Summary& current, double relative) {
  const auto before = noise(base);
  const auto after = noise(current);
  if (!before || !after) return {direction(base, current), "the intervals are apart"};
  const auto [low, high] = std::minmax(*before, *after);
  const auto spreads = fmt::format("noise {} and {}", percent(*before), percent(*after));
  if (std::abs(relative) <= low) return {Change::same, "the difference is inside the noise of both, " + spreads};
  if (std::abs(relative) <= high) return {Change::ambiguous, "the difference is inside the noise of one alone, " + spreads};
  return {direction(base, current), "the intervals are apart, the difference is over the " + spreads};
}

/// Memory and FLOPs are counted and not sampled: any difference is one. Of other figures a small one may be chance.
Judgement judge_bare(const Summary& base, const Summary& current, double relative) {
  const auto quantity = quantity_of(base.unit);
  if (quantity == Quantity::memory || quantity == Quantity::operations)
    return {direction(base, current), "the figures are exact and differ"};
  if (std::abs(relative) > large)
    return {direction(base, current), "no intervals, and the difference is over " + percent(large)};
  return {Change::ambiguous, "no intervals, and the difference is under " + percent(large)};
}

// --- pairing -----------------------------------------------------------------------------------------------------------

std::string place(const Record& record) {
  // Sorted keys: the order in which an experiment names its axes does not matter.
  return nlohmann::json::parse(record.axes.dump()).dump() + "#" + std::to_string(record.seed);
}

/// The partner of each record of `current` in `base`: of the same id, else the first unpaired one of the same place.
std::map<const Record*, const Record*> pair_records(const Report& base, const Report& current) {
  std::map<const Record*, const Record*> partners;
  std::map<std::string, const Record*> by_id;
  for (const auto& record : base.records) by_id.emplace(record.id, &record);
  std::set<const Record*> taken;
  for (const auto& record : current.records)
    if (const auto found = by_id.find(record.id); found != by_id.end()) {
      partners[&record] = found->second;
      taken.insert(found->second);
    }
  for (const auto& record : current.records) {
    if (partners.contains(&record)) continue;
    for (const auto& other : base.records)
      if (!taken.contains(&other) && place(other) == place(record)) {
        partners[&record] = &other;
        taken.insert(&other);
        break;
      }
  }
  return partners;
}

std::vector<FigureComparison> compare_figures(const Record& base, const Record& current,
                                              const std::vector<std::string>& metrics) {
  std::vector<FigureComparison> figures;
  if (base.status != Status::ok || current.status != Status::ok) return figures;
  for (const auto& after : current.summaries) {
    const auto* before = find_summary(base, after.name);
    const bool wanted = metrics.empty() || std::find(metrics.begin(), metrics.end(), after.name) != metrics.end();
    if (before == nullptr || before->unit != after.unit || !wanted) continue;
    figures.push_back({*before, after, relative_difference(before->value, after.value), judge(*before, after)});
  }
  return figures;
}

void check_metrics(const std::vector<std::string>& metrics, const Report& base, const Report& current) {
  std::vector<std::string> known;
  for (const auto* report : {&base, &current})
    for (const auto& record : report->records)
      for (const auto& summary : record.summaries)
        if (std::find(known.begin(), known.end(), summary.name) == known.end()) known.push_back(summary.name);
  for (const auto& metric : metrics)
    if (std::find(known.begin(), known.end(), metric) == known.end())
      throw UsageError(unknown_name_message("metric", metric, known));
}

/// What else differs between cells that were paired by their axes, and between the machines.
std::vector<std::string> notes_on(const Comparison& comparison, const Report& base, const Report& current) {
  std::vector<std::string> notes;
  std::set<std::string> settings;
  bool other_machine = false;
  const auto environment = [](const Report& report, const Record& record) {
    return report.environments.contains(record.environment) ? report.environments[record.environment] : report.environment;
  };
  for (const auto& cell : comparison.cells) {
    for (const auto& [key, value] : cell.base->configuration.items())
      if (!cell.current->configuration.contains(key) || cell.current->configuration[key] != value) settings.insert(key);
    auto before = environment(base, *cell.base);
    auto after = environment(current, *cell.current);
    for (const auto* key : {"cpu", "threads", "device", "build_type", "libtorch"})
      other_machine = other_machine || before.value(key, Json()) != after.value(key, Json());
    const auto gpu = [](const Json& json) { return json.contains("gpu") ? json["gpu"].value("name", Json()) : Json(); };
    other_machine = other_machine || gpu(before) != gpu(after);
  }
  if (!settings.empty())
    notes.push_back("the reports differ in settings beside the axes: " + join({settings.begin(), settings.end()}));
  if (other_machine) notes.emplace_back("the reports come from different machines or builds: their times do not compare");
  return notes;
}

}  // namespace

std::string to_string(Change change) {
  switch (change) {
    case Change::same: return "SAME";
    case Change::fast: return "FAST";
    case Change::slow: return "SLOW";
    case Change::ambiguous: break;
  }
  return "AMBG";
}

std::string comparison_rule() {
  return fmt::format(
      "SAME: the 95 % intervals overlap, or the difference is under {0}, or inside the noise of both runs (half the "
      "interquartile range of their samples). FAST and SLOW (better and worse, where higher is better): the intervals are "
      "apart and the difference is over the noise of both; for means over the same documents, the interval of the paired "
      "bootstrap leaves 0 out; memory and FLOPs, which are exact, differ; other figures without interval differ by over "
      "{1}. "
      "AMBG: neither can be said, measure longer.",
      percent(negligible), percent(large));
}

Judgement judge(const Summary& base, const Summary& current) {
  if (!finite(base) || !finite(current)) return {Change::ambiguous, "a figure is not finite"};
  const double relative = relative_difference(base.value, current.value);
  if (relative == 0) return {Change::same, "equal"};
  if (std::abs(relative) <= negligible) return {Change::same, "the difference is under " + percent(negligible)};
  if (paired(base, current)) return judge_paired(base, current);
  if (!base.interval && !current.interval) return judge_bare(base, current, relative);
  if (!base.interval || !current.interval) return {Change::ambiguous, "only one figure has an interval"};
  const bool apart = base.interval->second < current.interval->first || current.interval->second < base.interval->first;
  return apart ? judge_apart(base, current, relative) : judge_overlapping(base, current, relative);
}

bool Comparison::regressed() const {
  return std::any_of(cells.begin(), cells.end(), [](const CellComparison& cell) {
    return cell.broke() || std::any_of(cell.figures.begin(), cell.figures.end(), [](const FigureComparison& figure) {
             return figure.judgement.change == Change::slow;
           });
  });
}

Comparison compare_reports(const Report& base, const Report& current, const std::vector<std::string>& metrics) {
  check_metrics(metrics, base, current);
  const auto partners = pair_records(base, current);
  if (partners.empty())
    throw UsageError(fmt::format("the reports have no cell in common: {} and {} records differ in id, and in axes or seed",
                                 base.records.size(), current.records.size()));
  Comparison comparison;
  std::set<const Record*> taken;
  for (const auto& record : current.records) {
    const auto found = partners.find(&record);
    if (found == partners.end()) {
      comparison.only_current.push_back(&record);
      continue;
    }
    taken.insert(found->second);
    comparison.cells.push_back({found->second, &record, compare_figures(*found->second, record, metrics)});
  }
  for (const auto& record : base.records)
    if (!taken.contains(&record)) comparison.only_base.push_back(&record);
  comparison.notes = notes_on(comparison, base, current);
  return comparison;
}

}  // namespace transpool
