#include "runners/sweep/expression.h"

#include <fmt/format.h>

#include <cctype>
#include <charconv>
#include <cmath>

namespace transpool {
namespace {

using ValueOf = std::function<Json(const std::string&)>;

/// Recursive descent that evaluates as it reads; with `value_of` empty it only checks the form.
class Reader {
 public:
  Reader(const std::string& text, const Where& where, const ValueOf& value_of)
      : text_(text), where_(where), value_of_(value_of) {}

  bool read() {
    const auto value = any();
    skip();
    if (at_ != text_.size()) refuse("end of the expression");
    return truth(value);
  }

 private:
  Json any() {
    auto left = both();
    while (word("or") || sign("||")) {
      const auto right = both();
      left = truth(left) || truth(right);
    }
    return left;
  }

  Json both() {
    auto left = negated();
    while (word("and") || sign("&&")) {
      const auto right = negated();
      left = truth(left) && truth(right);
    }
    return left;
  }

  Json negated() {
    if (word("not")) return !truth(negated());
    return comparison();
  }

  Json comparison() {
    auto left = sum();
    for (const auto* symbol : {"<=", ">=", "==", "!=", "<", ">"})
      if (sign(symbol)) return compare(left, symbol, sum());
    return left;
  }

  Json compare(const Json& left, const std::string& symbol, const Json& right) {
    if (!value_of_) return true;
    if (symbol == "==") return same(left, right);
    if (symbol == "!=") return !same(left, right);
    const double a = number(left);
    const double b = number(right);
    if (symbol == "<") return a < b;
    if (symbol == ">") return a > b;
    return symbol == "<=" ? a <= b : a >= b;
  }

  bool same(const Json& left, const Json& right) {
    if (left.is_number() && right.is_number()) return left.get<double>() == right.get<double>();
    return left == right;
  }

  Json sum() {
    auto left = product();
    while (true) {
      if (sign("+")) left = number(left) + number(product());
      else if (sign("-")) left = number(left) - number(product());
      else return left;
    }
  }

  Json product() {
    auto left = atom();
    while (true) {
      if (sign("*")) left = number(left) * number(atom());
      else if (sign("/")) left = number(left) / number(atom());
      else if (sign("%")) left = std::fmod(number(left), number(atom()));
      else return left;
    }
  }

  Json atom() {
    skip();
    if (sign("(")) {
      auto inside = any();
      if (!sign(")")) refuse("\")\"");
      return inside;
    }
    if (at_ < text_.size() && (text_[at_] == '\'' || text_[at_] == '"')) return quoted();
    if (at_ < text_.size() && std::isdigit(static_cast<unsigned char>(text_[at_]))) return literal();
    return name();
  }

  Json quoted() {
    const auto end = text_.find(text_[at_], at_ + 1);
    if (end == std::string::npos) refuse("a closing quote");
    auto value = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    return value;
  }

  Json literal() {
    double value = 0;
    const auto parsed = std::from_chars(text_.data() + at_, text_.data() + text_.size(), value);
    at_ = static_cast<std::size_t>(parsed.ptr - text_.data());
    return value;
  }

  Json name() {
    const auto start = at_;
    while (at_ < text_.size() &&
           (std::isalnum(static_cast<unsigned char>(text_[at_])) || text_[at_] == '_' || text_[at_] == '.'))
      ++at_;
    if (at_ == start) refuse("a name, a number or a quoted text");
    const auto key = text_.substr(start, at_ - start);
    if (key == "true" || key == "false") return key == "true";
    if (!value_of_) return 1.0;
    const auto value = value_of_(key);
    return value.is_object() && value.contains("name") ? value["name"] : value;
  }

  double number(const Json& value) {
    if (!value_of_) return 1;
    if (!value.is_number()) where_.fail(fmt::format("in \"{}\": {} is not a number", text_, value.dump()));
    return value.get<double>();
  }

  bool truth(const Json& value) {
    if (!value_of_) return true;
    if (!value.is_boolean()) where_.fail(fmt::format("in \"{}\": {} is not true or false", text_, value.dump()));
    return value.get<bool>();
  }

  bool sign(const std::string& symbol) {
    skip();
    if (text_.compare(at_, symbol.size(), symbol) != 0) return false;
    at_ += symbol.size();
    return true;
  }

  bool word(const std::string& keyword) {
    skip();
    const auto end = at_ + keyword.size();
    if (text_.compare(at_, keyword.size(), keyword) != 0) return false;
    if (end < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[end])) || text_[end] == '_')) return false;
    at_ = end;
    return true;
  }

  void skip() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
  }

  [[noreturn]] void refuse(const std::string& expected) {
    where_.fail(fmt::format("\"{}\" is not an expression: {} expected at character {}", text_, expected, at_ + 1));
  }

  const std::string& text_;
  const Where& where_;
  const ValueOf& value_of_;
  std::size_t at_ = 0;
};

}  // namespace

Expression::Expression(std::string text, const Where& where) : text_(std::move(text)), where_(where) {
  const ValueOf form_only;
  Reader(text_, where_, form_only).read();
}

bool Expression::holds(const std::function<Json(const std::string&)>& value_of) const {
  return Reader(text_, where_, value_of).read();
}

}  // namespace transpool
