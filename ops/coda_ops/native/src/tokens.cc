#include "tokens.h"

#include "arithmetic.h"
#include "simd.h"

namespace coda {
namespace {

CODA_INLINE void add_gated_inline(float* row, const float* update, float gate, int64_t width) {
  if (!(gate > 0.0f)) return;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) row[i] += gate * update[i];
}

CODA_INLINE void add_gated_difference_inline(float* row, const float* now, const float* before, float gate,
                                             int64_t width) {
  if (!(gate > 0.0f)) return;
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) row[i] += gate * (now[i] - before[i]);
}

CODA_INLINE float score_inline(const float* row, const float* weight, int64_t width) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; ++i) sum += row[i] * weight[i];
  return sum;
}

}  // namespace

CODA_SIMD(void, add_gated, (float* row, const float* update, float gate, int64_t width), (row, update, gate, width))
CODA_SIMD(void, add_gated_difference,
          (float* row, const float* now, const float* before, float gate, int64_t width),
          (row, now, before, gate, width))
CODA_SIMD(float, score, (const float* row, const float* weight, int64_t width), (row, weight, width))

}  // namespace coda
