#include "runners/report/display.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <set>

namespace transpool {
namespace {

/// Decodes the character at `at` and moves past it. A byte that starts none counts as one character.
char32_t next_character(std::string_view text, std::size_t& at) {
  const auto lead = static_cast<unsigned char>(text[at++]);
  const int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : lead >= 0xC0 ? 1 : 0;
  char32_t character = more == 0 ? lead : lead & (0x3FU >> static_cast<unsigned>(more));
  for (int i = 0; i < more && at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0U) == 0x80U; ++i)
    character = (character << 6U) | (static_cast<unsigned char>(text[at++]) & 0x3FU);
  return character;
}

std::size_t character_width(char32_t c) {
  const auto within = [c](char32_t first, char32_t last) { return c >= first && c <= last; };
  if (c == 0 || within(0x300, 0x36F) || within(0x200B, 0x200F) || within(0xFE00, 0xFE0F)) return 0;
  const bool wide = within(0x1100, 0x115F) || within(0x2E80, 0xA4CF) || within(0xAC00, 0xD7A3) || within(0xF900, 0xFAFF) ||
                    within(0xFE30, 0xFE6F) || within(0xFF00, 0xFF60) || within(0xFFE0, 0xFFE6) || within(0x1F300, 0x1FAFF) ||
                    within(0x20000, 0x3FFFD);
  return wide ? 2 : 1;
}

std::string display_entries(const Json& object, std::string_view skipped_key) {
  std::vector<std::string> entries;
  for (const auto& [key, value] : object.items())
    if (key != skipped_key) entries.push_back(key + "=" + display_value(value));
  return join(entries);
}

/// Very large and very small numbers would fill a column with zeros.
bool needs_exponent(double value) { return value != 0 && (std::abs(value) >= 1e9 || std::abs(value) < 1e-4); }

int exponent_of(double value) { return static_cast<int>(std::floor(std::log10(std::abs(value)))); }

/// Decimals that leave `digits` significant ones.
int decimals_for(double value, int digits) { return value == 0 ? 0 : std::clamp(digits - 1 - exponent_of(value), 0, 12); }

std::string display_plain(double value) {
  if (!std::isfinite(value)) return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
  if (needs_exponent(value)) return fmt::format("{:.3e}", value);
  if (value == std::round(value)) return fmt::format("{:.0f}", value);
  return fmt::format("{:.{}f}", value, decimals_for(value, 4));
}

}  // namespace

std::string display_value(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_array()) {
    std::vector<std::string> parts;
    for (const auto& item : value) parts.push_back(display_value(item));
    return "[" + join(parts) + "]";
  }
  if (!value.is_object()) return value.dump();
  if (!value.contains("name") || !value["name"].is_string()) return "{" + display_entries(value, "") + "}";
  const auto options = display_entries(value, "name");
  return value["name"].get<std::string>() + (options.empty() ? "" : "(" + options + ")");
}

DisplayedFigure display_figure(double value, const std::optional<std::pair<double, double>>& interval) {
  const double half = interval ? (interval->second - interval->first) / 2 : 0;
  if (!std::isfinite(value) || !std::isfinite(half) || half <= 0) return {display_plain(value), ""};
  const double scale = std::max(std::abs(value), half);
  if (needs_exponent(scale)) return {fmt::format("{:.3e}", value), fmt::format("{:.1e}", half)};
  // A half of 0.0123 keeps two digits, one of 0.57 needs but one; six digits of the value are enough for any reader.
  const double leading = half / std::pow(10.0, exponent_of(half));
  const int decimals = std::min(decimals_for(half, leading < 2.95 ? 2 : 1), decimals_for(scale, 6));
  const auto shown = fmt::format("{:.{}f}", half, decimals);
  const bool vanished = std::none_of(shown.begin(), shown.end(), [](char c) { return c >= '1' && c <= '9'; });
  return {fmt::format("{:.{}f}", value, decimals), vanished ? "" : shown};
}

std::string display_with_interval(double value, const std::optional<std::pair<double, double>>& interval) {
  const auto figure = display_figure(value, interval);
  return figure.value + (figure.half.empty() ? "" : " ± " + figure.half);
}

std::string with_unit(const std::string& figure, const std::string& unit) {
  return unit.empty() || unit == "1" ? figure : figure + " " + unit;
}

std::string axes_text(const Record& record) {
  std::vector<std::string> parts;
  for (const auto& [axis, value] : record.axes.items()) parts.push_back(axis + "=" + display_value(value));
  if (!record.axes.contains("seed")) parts.push_back("seed=" + std::to_string(record.seed));
  return join(parts, " ");
}

std::size_t display_width(std::string_view text) {
  std::size_t width = 0;
  for (std::size_t at = 0; at < text.size();) width += character_width(next_character(text, at));
  return width;
}

std::string pad_left(const std::string& text, std::size_t width) {
  return std::string(width - std::min(width, display_width(text)), ' ') + text;
}

std::string pad_right(const std::string& text, std::size_t width) {
  return text + std::string(width - std::min(width, display_width(text)), ' ');
}

std::string sparkline(const std::vector<double>& samples, std::size_t bins) {
  static constexpr std::array<const char*, 9> blocks{" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  std::vector<double> finite;
  std::copy_if(samples.begin(), samples.end(), std::back_inserter(finite), [](double x) { return std::isfinite(x); });
  if (finite.empty()) return "";
  const auto [low, high] = std::minmax_element(finite.begin(), finite.end());
  if (*low == *high) return "";
  std::vector<std::size_t> counts(bins, 0);
  for (const double sample : finite) {
    const auto bin = static_cast<std::size_t>((sample - *low) / (*high - *low) * static_cast<double>(bins));
    ++counts[std::min(bin, bins - 1)];
  }
  const auto most = *std::max_element(counts.begin(), counts.end());
  std::string text;
  // A bin that holds anything shows at least the lowest block: an outlier must not look like a gap.
  for (const auto count : counts) text += blocks[(count * 8 + most - 1) / most];
  return text;
}

std::string first_line(const std::string& text, std::size_t width) {
  const auto line = text.substr(0, text.find('\n'));
  std::size_t end = 0;
  for (std::size_t at = 0, used = 0; at < line.size();) {
    used += character_width(next_character(line, at));
    if (used + 1 <= width || (used <= width && at == line.size())) end = at;
  }
  return end == line.size() && line.size() == text.size() ? line : line.substr(0, end) + "…";
}

Quantity quantity_of(const std::string& unit) {
  static const std::set<std::string> times{"s", "ms", "us", "µs", "μs", "ns", "min", "h"};
  if (times.contains(unit)) return Quantity::time;
  if (unit.ends_with("/s") || unit.ends_with("FLOPS")) return Quantity::rate;
  if (unit == "B" || unit == "bytes" || unit.ends_with("iB") || (unit.size() == 2 && unit[1] == 'B'))
    return Quantity::memory;
  if (unit.ends_with("FLOP") || unit.ends_with("FLOPs")) return Quantity::operations;
  return Quantity::other;
}

std::size_t unique_prefix_length(const std::vector<std::string>& ids) {
  const std::set<std::string> sorted(ids.begin(), ids.end());
  std::size_t length = 8;
  for (auto a = sorted.begin(); a != sorted.end(); ++a) {
    const auto b = std::next(a);
    if (b == sorted.end()) break;
    const auto common =
        static_cast<std::size_t>(std::mismatch(a->begin(), a->end(), b->begin(), b->end()).first - a->begin());
    length = std::max(length, common + 1);
  }
  return length;
}

}  // namespace transpool
