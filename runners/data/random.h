#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace transpool {

/// splitmix64: the same draws on every platform.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }

  /// Uniform in [0, limit), without bias.
  std::uint64_t below(std::uint64_t limit) {
    const std::uint64_t reject = (0 - limit) % limit;
    std::uint64_t draw = next();
    while (draw < reject) draw = next();
    return draw % limit;
  }

  template <class T>
  void shuffle(std::vector<T>& values) {
    for (std::size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[below(i)]);
  }

  /// `count` distinct values of [0, limit), in random order.
  std::vector<std::int32_t> distinct(std::int64_t count, std::int64_t limit) {
    std::vector<std::int32_t> all(static_cast<std::size_t>(limit));
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::int32_t>(i);
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) std::swap(all[i], all[i + below(all.size() - i)]);
    all.resize(static_cast<std::size_t>(count));
    return all;
  }

 private:
  std::uint64_t state_;
};

}  // namespace transpool
