#pragma once

#include "runners/report/record.h"

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace transpool {

/// An axis value as readers see it: `successive_halving(base=20)` for {"name": "successive_halving", "base": 20}.
std::string display_value(const Json& value);

/// A figure with as many digits as it deserves, and half of its interval ("" where it has none).
struct DisplayedFigure {
  std::string value;
  std::string half;
};

/// Four significant digits; with an interval as many decimals as give its half one or two significant digits.
DisplayedFigure display_figure(double value, const std::optional<std::pair<double, double>>& interval);

/// "12.34 ± 0.05", or the value alone.
std::string display_with_interval(double value, const std::optional<std::pair<double, double>>& interval);

/// The figure with its unit, if it has one.
std::string with_unit(const std::string& figure, const std::string& unit);

/// "pooling=hard_topk batch=4 seed=0": what the record measured.
std::string axes_text(const Record& record);

/// Terminal columns that UTF-8 text takes: combining marks count 0, East Asian wide characters and emoji 2.
std::size_t display_width(std::string_view text);

std::string pad_left(const std::string& text, std::size_t width);
std::string pad_right(const std::string& text, std::size_t width);

/// A histogram of the samples in one line of block characters; "" for fewer than two different samples.
std::string sparkline(const std::vector<double>& samples, std::size_t bins = 16);

/// The first line of the text, cut to `width` columns.
std::string first_line(const std::string& text, std::size_t width);

/// What kind of quantity a unit measures. It gives tables their order of columns and ratios their words.
enum class Quantity { time, memory, operations, rate, other };

Quantity quantity_of(const std::string& unit);

/// The number of leading characters of ids, 8 or more, that tells them all apart.
std::size_t unique_prefix_length(const std::vector<std::string>& ids);

}  // namespace transpool
