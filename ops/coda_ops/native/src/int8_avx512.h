// What the kernels of AVX-512 machines share: rounding a row.
#pragma once

#include "int8_kernel.h"

#if CODA_X86
#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))

namespace coda {

AVX512 inline __mmask16 below(int64_t count) {
  return count >= 16 ? __mmask16(0xffff) : __mmask16((1u << count) - 1);
}

// Levels as bytes, each with flip's bits flipped: 0x80 makes 0 … 255 of -128 … 127. Every 64 of them begin `stride` bytes
// behind those before.
AVX512 inline float quantize_bytes(const float* x, int64_t n, char* levels, int64_t stride, char flip) {
  __m512 highest = _mm512_setzero_ps();
  for (int64_t i = 0; i < n; i += 16) {
    highest = _mm512_max_ps(highest, _mm512_abs_ps(_mm512_maskz_loadu_ps(below(n - i), x + i)));
  }
  const float top = _mm512_reduce_max_ps(highest), step = top > 0 ? top / 127.0f : 1.0f;
  const __m512 steps = _mm512_set1_ps(step);
  // Dividing is slow. Multiplying by the inverse is off by 3e-5 at most, which only ratios near a half can tell; of
  // numbers so small that the inverse may overflow, all are divided.
  const __m512 inverse = _mm512_set1_ps(1.0f / step), near_half = _mm512_set1_ps(step < 1e-30f ? -1.0f : 0.4999f);
  const __m128i flips = _mm_set1_epi8(flip);
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 valid = below(n - i);
    const __m512 values = _mm512_maskz_loadu_ps(valid, x + i);
    const __m512 ratio = _mm512_mul_ps(values, inverse);
    __m512i level = _mm512_cvtps_epi32(ratio);
    const __m512 away = _mm512_abs_ps(_mm512_sub_ps(ratio, _mm512_cvtepi32_ps(level)));
    if (_mm512_cmp_ps_mask(away, near_half, _CMP_NLT_UQ) != 0) {
      level = _mm512_cvtps_epi32(_mm512_div_ps(values, steps));
    }
    _mm_mask_storeu_epi8(levels + i / 64 * stride + i % 64, valid, _mm_xor_si128(_mm512_cvtsepi32_epi8(level), flips));
  }
  return step;
}

}  // namespace coda
#endif
