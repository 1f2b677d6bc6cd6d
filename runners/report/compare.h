#pragma once

#include "runners/report/report.h"

namespace transpool {

/// How a figure changed. For a figure where higher is better (ROUGE), `fast` stands for better and `slow` for worse.
enum class Change { same, fast, slow, ambiguous };

/// SAME, FAST, SLOW, AMBG
std::string to_string(Change change);

struct Judgement {
  Change change = Change::same;
  std::string reason;  ///< which part of the rule decided, with its numbers
};

/// Compares one figure of two runs by the rule of `comparison_rule`.
Judgement judge(const Summary& base, const Summary& current);

/// The rule in words, as every comparison prints it.
std::string comparison_rule();

struct FigureComparison {
  Summary base;
  Summary current;
  double relative = 0;  ///< (current - base) / |base|; infinite where only the base is 0
  Judgement judgement;
};

/// One cell that both reports hold.
struct CellComparison {
  const Record* base = nullptr;
  const Record* current = nullptr;
  std::vector<FigureComparison> figures;  ///< only where both are ok

  /// A cell that was ok and is not any more.
  bool broke() const { return base->status == Status::ok && current->status != Status::ok; }
};

/// Points into the reports that it was made from.
struct Comparison {
  std::vector<CellComparison> cells;
  std::vector<const Record*> only_base;
  std::vector<const Record*> only_current;
  std::vector<std::string> notes;

  /// A figure is SLOW, or a cell broke.
  bool regressed() const;
};

/// Pairs cells by identity hash, else by axes and seed, and judges every metric that both carry in one unit (only those
/// named, where `metrics` names any). Throws UsageError for an unknown metric, and where no cell is in both.
Comparison compare_reports(const Report& base, const Report& current, const std::vector<std::string>& metrics = {});

/// `format` is one of text, md, csv, json; UsageError for any other.
std::string print_comparison(const Comparison& comparison, const std::string& format);

}  // namespace transpool
