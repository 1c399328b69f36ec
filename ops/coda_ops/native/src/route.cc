#include "route.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "arithmetic.h"
#include "scratch.h"
#include "simd.h"

namespace coda {
namespace {

// As in coda_ops/route.py: valid scores are saturated, padding sits below them all.
constexpr float kLimit = 1e29f;
constexpr float kPadding = -1e30f;

// exp of x <= 0 to 1e-14, branch-free so that loops of it become vector code. Below -708, where it would leave the
// normal numbers, it stays at 1e-308.
CODA_INLINE double exp_nonpositive(double x) {
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it leaves the nearest integer in the low bits
  constexpr double kLog2e = 1.4426950408889634, kLn2High = 0.6931471803691238, kLn2Low = 1.9082149292705877e-10;
  x = x < -708.0 ? -708.0 : x;
  const double shifted = x * kLog2e + kRound;
  const double n = shifted - kRound;
  const double r = (x - n * kLn2High) - n * kLn2Low;  // |r| <= ln 2 / 2
  double y = 1.0 / 479001600;
  y = y * r + 1.0 / 39916800;
  y = y * r + 1.0 / 3628800;
  y = y * r + 1.0 / 362880;
  y = y * r + 1.0 / 40320;
  y = y * r + 1.0 / 5040;
  y = y * r + 1.0 / 720;
  y = y * r + 1.0 / 120;
  y = y * r + 1.0 / 24;
  y = y * r + 1.0 / 6;
  y = y * r + 0.5;
  y = y * r + 1.0;
  y = y * r + 1.0;
  uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 1023) << 52;  // 2^n; what kRound left above the exponent is shifted out
  double scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return y * scale;
}

// Σ exp((min(s, cap) - top) / ε), where top is the largest of min(s, cap).
CODA_INLINE double sum_of_exponentials_inline(const double* s, int64_t n, double cap, double top, double inverse) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    const double u = s[i] < cap ? s[i] : cap;
    sum += exp_nonpositive((u - top) * inverse);
  }
  return sum;
}
CODA_SIMD(double, sum_of_exponentials, (const double* s, int64_t n, double cap, double top, double inverse),
          (s, n, cap, top, inverse))

// Ascending keys are descending scores, ties by ascending position.
uint64_t key(float score, int64_t position) {
  const float unsigned_zero = score + 0.0f;  // -0 ties with 0
  uint32_t bits;
  std::memcpy(&bits, &unsigned_zero, sizeof bits);
  const uint32_t ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(~ascending) << 32 | static_cast<uint32_t>(position);
}

// The bound that the soft top-k ends at, the paper's -a. The highest of the scores is 0.
double bound_of(const std::vector<double>& s, int64_t k, const std::vector<double>& epsilons) {
  const double log_k = std::log(static_cast<double>(k));
  double bound = std::numeric_limits<double>::infinity();
  for (const double epsilon : epsilons) {
    const double top = std::min(0.0, bound);
    const double sum = sum_of_exponentials(s.data(), static_cast<int64_t>(s.size()), bound, top, 1.0 / epsilon);
    bound = top + epsilon * (std::log(sum) - log_k);
  }
  return bound;
}

}  // namespace

void route_row(const float* scores, const bool* mask, int64_t tokens, int64_t slots, int64_t p, int64_t q,
               const std::vector<double>& epsilons, RouteScratch& scratch, int64_t* indices, float* gates, bool* used) {
  auto& [valid, keys, chosen] = scratch;
  valid.clear();
  keys.resize(tokens);
  for (int64_t i = 0; i < tokens; ++i) {
    const float s = mask[i] ? std::min(std::max(scores[i], -kLimit), kLimit) : kPadding;
    keys[i] = key(s, i);
    if (mask[i]) valid.push_back(s);
  }
  const int64_t n = static_cast<int64_t>(valid.size());
  const int64_t k = slot_count(n, p, q);

  // The first k keys are routed; the next ones up to slots fill what is left with positions of their own.
  if (slots < tokens) std::nth_element(keys.begin(), keys.begin() + slots, keys.end());
  if (k < slots) std::nth_element(keys.begin(), keys.begin() + k, keys.begin() + slots);
  chosen.assign(tokens, 0);
  for (int64_t j = 0; j < slots; ++j) chosen[static_cast<uint32_t>(keys[j])] = j < k ? 1 : 2;
  int64_t routed = 0, idle = k;
  for (int64_t i = 0; i < tokens; ++i) {
    if (chosen[i] != 0) indices[chosen[i] == 1 ? routed++ : idle++] = i;
  }

  const bool soft = k < n;
  double highest = 0, bound = 0;
  if (soft) {
    highest = *std::max_element(valid.begin(), valid.end());
    for (double& s : valid) s -= highest;
    bound = bound_of(valid, k, epsilons);
  }
  const double inverse = 1.0 / epsilons.back();
  for (int64_t j = 0; j < slots; ++j) {
    used[j] = j < k;
    gates[j] = used[j] ? 1.0f : 0.0f;
    if (used[j] && soft) {
      const double s = std::min(std::max(scores[indices[j]], -kLimit), kLimit) - highest;
      gates[j] = static_cast<float>(std::exp(std::min((s - bound) * inverse, 0.0)));
    }
  }
  keep_small(valid, keys, chosen);
}

}  // namespace coda
