// Route: a block takes one row through the soft top-k, selects, and counts slots off in order of position.
#pragma once

#include "device.h"

namespace coda {

// As in coda_ops/route.py: valid scores are saturated, padding sits below them all.
constexpr float kLimit = 1e29f;
constexpr float kPadding = -1e30f;

constexpr int kMostEpsilons = 256;

// How ε falls: the last of them stays to the end of the iterations.
struct Epsilons {
  int iterations, count;
  double at[kMostEpsilons];
};

constexpr int kPowers = 64;

// What a block shares beside its row.
struct RouteScratch {
  double powers[kPowers];  // 2^(i / kPowers)
  double sums[kWarps];
  double bound, inverse;  // of the soft top-k, the paper's -a; 1 / ε of the next iteration
  BlockCounts::Partials counts;
};

// A row of so many tokens fits into the shared memory that every card gives a block.
constexpr int64_t kBytesOfToken = sizeof(double) + sizeof(uint32_t);
constexpr int64_t kMostSharedTokens = (48 * 1024 - static_cast<int64_t>(sizeof(RouteScratch))) / kBytesOfToken;

// Ascending keys are ascending scores.
__device__ inline uint32_t key_of(float score, bool valid) {
  const float saturated = valid ? fminf(fmaxf(score, -kLimit), kLimit) : kPadding;
  const uint32_t bits = __float_as_uint(saturated + 0.0f);  // -0 ties with 0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ inline float score_of(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// One row: its keys, and its scores less the highest of them. Kept in shared memory, or made again whenever they are read.
template <bool kShared>
struct Row {
  const float* scores;
  const bool* mask;
  int tokens;
  double highest;
  double* below_highest;  // [tokens], shared
  uint32_t* keys;         // [tokens], shared

  __device__ uint32_t key(int i) const { return kShared ? keys[i] : key_of(scores[i], mask[i]); }
  __device__ double below(int i) const { return kShared ? below_highest[i] : static_cast<double>(score_of(key(i))) - highest; }
};

// exp of x to 4e-11, in a third of the float64 instructions of exp, which most cards have few units for. 1 for x >= 0, and
// 0 below -62. powers: 2^(i / kPowers).
__device__ inline double exponential(double x, const double* powers) {
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: adding it leaves the nearest integer in the low bits
  constexpr double kPowersOfE = kPowers * 1.4426950408889634, kLnOfPower = 0.6931471805599453 / kPowers;
  const int high = __double2hiint(x);
  if (high >= 0) return 1.0;                                 // the sign
  if (static_cast<uint32_t>(high) > 0xc04f0000u) return 0.0;  // the upper half of -62.0
  const double shifted = fma(x, kPowersOfE, kRound);
  const int n = __double2loint(shifted);
  const double r = fma(shifted - kRound, -kLnOfPower, x);  // |r| <= ln 2 / 128
  const double power = powers[n & (kPowers - 1)] * fma(fma(fma(r, 1.0 / 6, 0.5), r, 1.0), r, 1.0);
  return __hiloint2double(__double2hiint(power) + (n >> 6) * (1 << 20), __double2loint(power));  // times 2^(n / 64)
}

// log of x >= 1 to 1e-10: float's, and a step of Newton's method.
__device__ inline double logarithm(double x, const double* powers) {
  const double first = logf(static_cast<float>(x));
  const double off = x * exponential(-first, powers) - 1.0;
  return first + off - 0.5 * off * off;
}

// The bound that the soft top-k ends at. The highest score is 0, so the highest of min(s, bound) is known in advance.
template <bool kShared>
__device__ double soft_bound(const Row<kShared>& row, int k, const Epsilons& epsilons, RouteScratch& scratch) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  double top = 0, bound = 0, inverse = 1 / epsilons.at[0];
  for (int t = 0; t < epsilons.iterations; ++t) {
    double sum = 0;
    for (int i = threadIdx.x; i < row.tokens; i += kThreads) {
      sum += exponential((row.below(i) - top) * inverse, scratch.powers);
    }
    sum = warp_sum(sum);
    if (lane == 0) scratch.sums[warp] = sum;
    __syncthreads();
    if (warp == 0) {  // float64 is dear: the others wait
      const double all = warp_sum(lane < kWarps ? scratch.sums[lane] : 0.0);
      const double log_ratio = logarithm(all, scratch.powers) - logarithm(static_cast<double>(k), scratch.powers);
      if (lane == 0) {
        scratch.bound = top + epsilons.at[t < epsilons.count ? t : epsilons.count - 1] * log_ratio;
        scratch.inverse = 1 / epsilons.at[t + 1 < epsilons.count ? t + 1 : epsilons.count - 1];
      }
    }
    __syncthreads();
    bound = scratch.bound;
    inverse = scratch.inverse;
    top = bound < 0 ? bound : 0.0;
  }
  return bound;
}

// The highest keys of a row, as many as wanted: all above `from`, and of those that equal it the first `ties`.
struct Highest {
  uint32_t from = 0;
  int count;     // of keys from `from` up, never fewer than wanted
  int ties = 0;
};

// Both selections at once, bit by bit from the highest: a bit stays set while as many as wanted remain. Ends early where
// exactly so many do.
template <bool kShared>
__device__ void select(const Row<kShared>& row, int k, int slots, BlockCounts& counts, Highest& routed, Highest& held) {
  routed.count = held.count = row.tokens;
  for (uint32_t bit = 0x80000000u; bit != 0 && (routed.count != k || held.count != slots); bit >>= 1) {
    const uint32_t a = routed.from | bit, b = held.from | bit;
    int above_a = 0, above_b = 0;
    for (int i = threadIdx.x; i < row.tokens; i += kThreads) {
      const uint32_t key = row.key(i);
      above_a += key >= a;
      above_b += key >= b;
    }
    const int64_t both = counts.sum(pair(above_a, above_b));
    if (high_of(both) >= k) routed.from = a, routed.count = high_of(both);
    if (low_of(both) >= slots) held.from = b, held.count = low_of(both);
  }
}

// What becomes of one token after another in [first, last): visit(position, whether it is routed) for those with a slot.
template <bool kShared, typename Visit>
__device__ void visit_slots(const Row<kShared>& row, int first, int last, const Highest& routed, const Highest& held,
                            int64_t equal, const Visit& visit) {
  int equal_routed = high_of(equal), equal_held = low_of(equal);  // ties so far
  for (int i = first; i < last; ++i) {
    const uint32_t key = row.key(i);
    const bool in = key > routed.from || (key == routed.from && equal_routed++ < routed.ties);
    const bool kept = key > held.from || (key == held.from && equal_held++ < held.ties);
    if (in || kept) visit(i, in);
  }
}

// A block a row. scores, mask: [rows, tokens]; indices, gates, used: [rows, slots].
template <bool kShared>
__global__ void __launch_bounds__(kThreads)
    route_kernel(const float* scores, const bool* mask, int64_t* indices, float* gates, bool* used, int tokens, int slots,
                 int64_t numerator, int64_t denominator, const __grid_constant__ Epsilons epsilons) {
  extern __shared__ double shared[];
  RouteScratch& scratch = *reinterpret_cast<RouteScratch*>(shared);
  BlockCounts counts(scratch.counts);
  const int64_t at = blockIdx.x;
  double* const after = reinterpret_cast<double*>(&scratch + 1);
  Row<kShared> row{scores + at * tokens, mask + at * tokens, tokens, 0, after, reinterpret_cast<uint32_t*>(after + tokens)};

  if (threadIdx.x < kPowers) scratch.powers[threadIdx.x] = exp2(static_cast<double>(threadIdx.x) / kPowers);
  int valid = 0;
  uint32_t highest = 0;
  for (int i = threadIdx.x; i < tokens; i += kThreads) {
    const uint32_t key = key_of(row.scores[i], row.mask[i]);
    if (kShared) row.keys[i] = key;
    valid += row.mask[i];
    highest = key > highest ? key : highest;
  }
  const int n = static_cast<int>(counts.sum(valid));
  const int k = static_cast<int>((n * denominator + numerator - 1) / numerator);
  row.highest = score_of(static_cast<uint32_t>(counts.largest(highest)));
  if (kShared) {
    for (int i = threadIdx.x; i < tokens; i += kThreads) {
      row.below_highest[i] = static_cast<double>(score_of(row.keys[i])) - row.highest;
    }
  }
  const bool soft = k < n;
  const double bound = soft ? soft_bound(row, k, epsilons, scratch) : 0.0;
  const double final = epsilons.at[epsilons.count - 1];

  Highest routed, held;
  select(row, k, slots, counts, routed, held);
  // Each thread counts off tokens that lie side by side: first those that tie, then those that have a slot.
  const int each = (tokens - 1) / kThreads + 1;
  const int begin = static_cast<int>(threadIdx.x) * each;
  const int first = begin < tokens ? begin : tokens, last = first + each < tokens ? first + each : tokens;
  int equal_routed = 0, equal_held = 0;
  for (int i = first; i < last; ++i) {
    equal_routed += row.key(i) == routed.from;
    equal_held += row.key(i) == held.from;
  }
  int64_t equal = 0, slot = 0;
  const int64_t all_equal = counts.sum(pair(equal_routed, equal_held), &equal);
  routed.ties = k - (routed.count - high_of(all_equal));
  held.ties = slots - (held.count - low_of(all_equal));
  int in = 0, idle = 0;
  visit_slots(row, first, last, routed, held, equal, [&](int, bool is_routed) { ++(is_routed ? in : idle); });
  counts.sum(pair(in, idle), &slot);
  int next_in = high_of(slot), next_idle = k + low_of(slot);
  visit_slots(row, first, last, routed, held, equal, [&](int i, bool is_routed) {
    const int64_t to = at * slots + (is_routed ? next_in++ : next_idle++);
    indices[to] = i;
    used[to] = is_routed;
    gates[to] = !is_routed ? 0.0f : soft ? static_cast<float>(exp(fmin((row.below(i) - bound) / final, 0.0))) : 1.0f;
  });
}

}  // namespace coda
