// What the kernels of 256-bit machines share: finding a row's scale, quantising eight numbers, and dequantising sums.
#pragma once

#include "arithmetic.h"
#include "int8_kernel.h"

#if CODA_X86
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#define AVX2 __attribute__((target("avx2,fma")))

namespace coda {

// The scale of a row. Magnitudes are compared as integers, which order floats alike, NaN above all.
AVX2 inline float row_scale_of(const float* x, int64_t n) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256i highest = _mm256_setzero_si256();
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    highest = _mm256_max_epi32(highest, _mm256_castps_si256(_mm256_andnot_ps(sign, _mm256_loadu_ps(x + i))));
  }
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), highest);
  int32_t top = *std::max_element(lanes, lanes + 8);
  for (; i < n; ++i) {
    int32_t size;
    std::memcpy(&size, x + i, sizeof size);
    top = std::max(top, size & 0x7fffffff);
  }
  return row_scale_for(top);
}

// One number quantised, where it fills no register; what is no number becomes the lowest integer, as in registers.
AVX2 inline int quantise_one(float x, float row_scale) { return _mm_cvtss_si32(_mm_set_ss(x / row_scale)); }

// Eight numbers quantised, to 16 bits.
AVX2 inline __m128i quantised_of(const float* x, __m256 row_scales) {
  const __m256i wide = _mm256_cvtps_epi32(_mm256_div_ps(_mm256_loadu_ps(x), row_scales));
  return _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
}

// The sums of a few rows of one panel, less what is to be taken from each, into y. sums: [rows, kPanel]; less: [kPanel].
// Not inlined: what it needs would drive the sums out of the registers while they are added up.
__attribute__((noinline)) AVX2 inline void write_panel(const Int8Product& p, int64_t row, int rows, int64_t output,
                                                       const int32_t* sums, const __m256i less[2]) {
  const auto width = static_cast<size_t>(std::min(kPanel, p.outputs - output));
  for (int r = 0; r < rows; ++r) {
    alignas(32) float out[kPanel];
    const __m256 row_scale = _mm256_set1_ps(p.row_scales[row + r]);
    for (int v = 0; v < 2; ++v) {
      const __m256i sum = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums + r * kPanel + 8 * v));
      const __m256 total = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, less[v]));
      const __m256 scaled = _mm256_mul_ps(_mm256_mul_ps(total, row_scale), _mm256_loadu_ps(p.scale + output + 8 * v));
      _mm256_store_ps(out + 8 * v, _mm256_add_ps(scaled, _mm256_loadu_ps(p.bias + output + 8 * v)));
    }
    std::memcpy(p.y + (row + r) * p.stride + output, out, width * sizeof(float));
  }
}

// The same from registers.
template <int R>
AVX2 CODA_INLINE void write_sums(const Int8Product& p, int64_t row, int64_t output, const __m256i (&sum)[R][2],
                                 const __m256i less[2]) {
  int32_t sums[R * kPanel];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    auto* to = reinterpret_cast<__m256i*>(sums + r * kPanel);
    _mm256_storeu_si256(to, sum[r][0]);
    _mm256_storeu_si256(to + 1, sum[r][1]);
  }
  write_panel(p, row, R, output, sums, less);
}

}  // namespace coda
#endif
