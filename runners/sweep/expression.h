#pragma once

#include "operators/error.h"

#include <functional>

namespace transpool {

/// A condition on a cell, as in "where": comparisons of settings, numbers and 'texts' with + - * / %, `and`, `or`, `not`
/// and parentheses, for example `pooled_length < source_length and pooling != 'hard_topk'`. A variant compares by its name.
class Expression {
 public:
  /// Throws UsageError at `where` for text that is no expression.
  Expression(std::string text, const Where& where);

  /// `value_of` gives a setting's value; it throws for a name that is not one. Throws UsageError where types do not fit.
  bool holds(const std::function<Json(const std::string&)>& value_of) const;

  const std::string& text() const { return text_; }

 private:
  std::string text_;
  Where where_;
};

}  // namespace transpool
