// What the kernels of AVX-512 machines share: rounding a row.
#pragma once

#include "int8_kernel.h"

#if CODA_X86
#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))

namespace coda {

AVX512 inline __mmask16 below(int64_t count) {
  return count >= 16 ? __mmask16(0xffff) : count <= 0 ? __mmask16(0) : __mmask16((1u << count) - 1);
}

constexpr int64_t kRounded = 64;  // numbers that are quantised together

// The next of them; what lies behind the last of a row is 0.
template <bool kWhole>
AVX512 inline void load(const float* x, int64_t left, __m512* values) {
  for (int64_t j = 0; j < 4; ++j) {
    values[j] = kWhole ? _mm512_loadu_ps(x + 16 * j) : _mm512_maskz_loadu_ps(below(left - 16 * j), x + 16 * j);
  }
}

template <bool kWhole>
AVX512 inline void raise(const float* x, int64_t left, __m512i* highest) {
  __m512 values[4];
  load<kWhole>(x, left, values);
  for (int64_t j = 0; j < 4; ++j) {
    highest[j] = _mm512_max_epi32(highest[j], _mm512_castps_si512(_mm512_abs_ps(values[j])));
  }
}

// What a row is quantised with.
struct Rounding {
  __m512 row_scale, inverse, near_half;
  __m512i flips;
};

template <bool kWhole>
AVX512 inline void round_to(const float* x, int64_t left, const Rounding& by, char* quantised) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  __m512 values[4], away = _mm512_setzero_ps();
  __m512i integer[4];
  load<kWhole>(x, left, values);
  for (int64_t j = 0; j < 4; ++j) {
    const __m512 ratio = _mm512_mul_ps(values[j], by.inverse);
    integer[j] = _mm512_cvtps_epi32(ratio);
    away = _mm512_max_ps(away, _mm512_abs_ps(_mm512_sub_ps(ratio, _mm512_cvtepi32_ps(integer[j]))));
  }
  if (_mm512_cmp_ps_mask(away, by.near_half, _CMP_NLT_UQ) != 0) {
    for (int64_t j = 0; j < 4; ++j) integer[j] = _mm512_cvtps_epi32(_mm512_div_ps(values[j], by.row_scale));
  }
  const __m512i packed =
      _mm512_packs_epi16(_mm512_packs_epi32(integer[0], integer[1]), _mm512_packs_epi32(integer[2], integer[3]));
  const __m512i bytes = _mm512_xor_si512(_mm512_permutexvar_epi32(order, packed), by.flips);
  if constexpr (kWhole) {
    _mm512_storeu_si512(quantised, bytes);
  } else {
    _mm512_mask_storeu_epi8(quantised, (__mmask64(1) << left) - 1, bytes);
  }
}

// A row quantised to bytes, each with flip's bits flipped: 0x80 makes 0 … 255 of -128 … 127. Every 64 of them begin
// `stride` bytes behind those before.
AVX512 inline float quantize_bytes(const float* x, int64_t n, char* quantised, int64_t stride, char flip) {
  const int64_t whole = n / kRounded * kRounded;
  __m512i highest[4] = {};  // sizes, compared as integers, which order floats alike, NaN above all
  for (int64_t i = 0; i < whole; i += kRounded) raise<true>(x + i, kRounded, highest);
  if (whole < n) raise<false>(x + whole, n - whole, highest);
  const float row_scale = row_scale_for(_mm512_reduce_max_epi32(
      _mm512_max_epi32(_mm512_max_epi32(highest[0], highest[1]), _mm512_max_epi32(highest[2], highest[3]))));
  // Dividing is slow. Multiplying by the inverse is off by 3e-5 at most, which only ratios near a half can tell; of
  // numbers so small that the inverse may overflow, all are divided.
  const Rounding by{_mm512_set1_ps(row_scale), _mm512_set1_ps(1.0f / row_scale),
                    _mm512_set1_ps(row_scale < 1e-30f ? -1.0f : 0.4999f), _mm512_set1_epi8(flip)};
  for (int64_t i = 0; i < whole; i += kRounded) round_to<true>(x + i, kRounded, by, quantised + i / kRounded * stride);
  if (whole < n) round_to<false>(x + whole, n - whole, by, quantised + whole / kRounded * stride);
  return row_scale;
}

}  // namespace coda
#endif
