// What the kernels of 256-bit machines share: finding a row's step, rounding eight numbers, and turning sums into floats.
#pragma once

#include "int8_kernel.h"

#if CODA_X86
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#define AVX2 __attribute__((target("avx2,fma")))

namespace coda {

// What a level of a row is worth.
AVX2 inline float step_of(const float* x, int64_t n) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 highest = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) highest = _mm256_max_ps(highest, _mm256_andnot_ps(sign, _mm256_loadu_ps(x + i)));
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, highest);
  float top = *std::max_element(lanes, lanes + 8);
  for (; i < n; ++i) top = std::max(top, std::fabs(x[i]));
  return top > 0 ? top / 127.0f : 1.0f;
}

// Eight levels of 16 bits.
AVX2 inline __m128i levels_of(const float* x, __m256 steps) {
  const __m256i wide = _mm256_cvtps_epi32(_mm256_div_ps(_mm256_loadu_ps(x), steps));
  return _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
}

// Sixteen sums of one row into y.
AVX2 inline void write_panel(const Int8Product& p, int64_t row, int64_t output, const __m256i sums[2]) {
  alignas(32) float out[kPanel];
  const __m256 step = _mm256_set1_ps(p.steps[row]);
  for (int v = 0; v < 2; ++v) {
    const __m256 scaled = _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sums[v]), step),
                                        _mm256_loadu_ps(p.scale + output + 8 * v));
    _mm256_store_ps(out + 8 * v, _mm256_add_ps(scaled, _mm256_loadu_ps(p.bias + output + 8 * v)));
  }
  const auto width = static_cast<size_t>(std::min(kPanel, p.outputs - output));
  std::memcpy(p.y + row * p.stride + output, out, width * sizeof(float));
}

}  // namespace coda
#endif
