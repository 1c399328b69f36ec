// What Route's attributes say: how many tokens are routed, and how ε falls. No onnxruntime here.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace coda {

// How many of n tokens are routed at r = p / q: ceil(n * q / p). All are below 2^31.
inline int64_t slot_count(int64_t n, int64_t p, int64_t q) { return (n * q + p - 1) / p; }

// One ε for each iteration, largest first, as coda_ops.route.Schedule gives them.
inline std::vector<double> epsilons(int64_t iterations, float start, float decay, float final) {
  // Attributes are float32 where the model has decimal numbers: the shortest one that rounds to x is what was meant.
  const auto exact = [](float x) {
    for (double scale = 1; scale <= 1e15; scale *= 10) {
      const double decimal = std::round(x * scale) / scale;
      if (static_cast<float>(decimal) == x) return decimal;
    }
    return static_cast<double>(x);
  };
  std::vector<double> out;
  for (int64_t t = 0; t < iterations; ++t) {
    out.push_back(std::max(exact(final), exact(start) * std::pow(exact(decay), static_cast<double>(t))));
  }
  return out;
}

}  // namespace coda
