#pragma once

#include "operators/error.h"

#include <optional>
#include <string>
#include <vector>

namespace transpool {

/// What one shape, dtype and device showed.
struct CheckRow {
  std::string device, dtype, shape;
  std::vector<double> errors;  ///< relative, one a result; empty where there is a problem
  double allowed = 0;
  std::string problem;       ///< why it could not run
  bool unsupported = false;  ///< the problem is a declared limit, and no failure

  bool holds() const;
};

/// A variant against its float64 reference, or against another variant in float64.
struct Check {
  std::string kind, name, against;
  std::vector<std::string> results;  ///< "values", "gradient of x" ...
  std::vector<CheckRow> rows;

  bool holds() const;
};

/// Runs the variant forward and backward over shapes (odd ones, k = 1, k = n, k not dividing n, ties, lengths from 0 to n)
/// and every dtype that it declares, on each device. `name` and `against` are names or objects with options. Throws
/// UsageError for an unknown kind, name or option.
Check check_variant(const std::string& kind, const Json& name, const std::optional<Json>& against,
                    const std::vector<std::string>& devices);

/// `format` is text or json; UsageError for any other.
std::string print_check(const Check& check, const std::string& format);

}  // namespace transpool
