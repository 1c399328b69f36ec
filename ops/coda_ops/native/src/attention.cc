#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "arithmetic.h"
#include "scratch.h"
#include "simd.h"

namespace coda {
namespace {

constexpr int64_t kQueries = 16;  // whose scores stay in the first cache

// A row of scores → exp(score * scale + bias - the largest); returns what they add up to.
CODA_INLINE float exponentials(float* scores, const float* bias, float scale, int64_t n) {
  float highest = -INFINITY;
#pragma omp simd reduction(max : highest)
  for (int64_t j = 0; j < n; ++j) {
    scores[j] = scores[j] * scale + bias[j];
    highest = scores[j] > highest ? scores[j] : highest;  // std::max would not become vector code
  }
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) {
    scores[j] = exp_nonpositive(scores[j] - highest);
    sum += scores[j];
  }
  return sum;
}

// R rows times P registers of L columns: as many sums as there are registers for.
template <int L, int R, int P>
CODA_INLINE void attend_inline(const AttentionHead& head, int64_t first, int64_t last, AttentionScratch& scratch) {
  const int64_t tokens = head.tokens, width = head.width, columns = padded(tokens), wide = padded(width);
  float *keys = scratch.keys.data(), *values = scratch.values.data(), *scores = scratch.scores.data();
  float* mixed = scratch.mixed.data();
  for (int64_t j = 0; j < tokens; j += kLanes) {
    const int64_t count = std::min(kLanes, tokens - j);
    const float* rows[kLanes];
    for (int64_t i = 0; i < count; ++i) rows[i] = head.memory[j + i] + head.key_offset;
    for (int64_t k = 0; k < width; ++k) {
      for (int64_t i = 0; i < count; ++i) keys[k * columns + j + i] = rows[i][k];
    }
  }
  for (int64_t j = 0; j < tokens; ++j) {
    std::memcpy(values + j * wide, head.memory[j] + head.value_offset, static_cast<size_t>(width) * sizeof(float));
  }
  for (int64_t q = first; q < last; q += kQueries) {
    const int64_t rows = std::min(kQueries, last - q);
    multiply<L, R, P>(head.query + q * head.query_stride, head.query_stride, rows, keys, columns, width, scores);
    float sums[kQueries];
    for (int64_t r = 0; r < rows; ++r) {
      sums[r] = exponentials(scores + r * columns, head.bias + (q + r) * head.bias_stride, head.scale, tokens);
    }
    multiply<L, R, P>(scores, columns, rows, values, wide, tokens, mixed);
    for (int64_t r = 0; r < rows; ++r) {
      const float share = 1.0f / sums[r];
      float* out = head.out + (q + r) * head.out_stride;
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) out[k] = mixed[r * wide + k] * share;
    }
  }
}

#if CODA_X86
__attribute__((target("arch=x86-64-v4,prefer-vector-width=512"))) void attend_v4(const AttentionHead& head,
                                                                                int64_t first, int64_t last,
                                                                                AttentionScratch& scratch) {
  attend_inline<16, 8, 2>(head, first, last, scratch);
}
__attribute__((target("arch=x86-64-v3"))) void attend_v3(const AttentionHead& head, int64_t first, int64_t last,
                                                      AttentionScratch& scratch) {
  attend_inline<8, 4, 2>(head, first, last, scratch);
}
#endif

void attend_plain(const AttentionHead& head, int64_t first, int64_t last, AttentionScratch& scratch) {
  attend_inline<4, 4, 2>(head, first, last, scratch);
}

using Attend = void (*)(const AttentionHead&, int64_t, int64_t, AttentionScratch&);

Attend choose() {
#if CODA_X86
  if (has_avx512()) return attend_v4;
  if (has_avx2()) return attend_v3;
#endif
  return attend_plain;
}

}  // namespace

void attend(const AttentionHead& head, int64_t first, int64_t last, AttentionScratch& scratch) {
  static const Attend chosen = choose();
  // What padding holds goes into scores and sums that nobody reads.
  scratch.keys.resize(static_cast<size_t>(head.width * padded(head.tokens)));
  scratch.values.resize(static_cast<size_t>(head.tokens * padded(head.width)));
  scratch.scores.resize(static_cast<size_t>(kQueries * padded(head.tokens)));
  scratch.mixed.resize(static_cast<size_t>(kQueries * padded(head.width)));
  chosen(head, first, last, scratch);
  keep_small(scratch.keys, scratch.values, scratch.scores, scratch.mixed);
}

}  // namespace coda
