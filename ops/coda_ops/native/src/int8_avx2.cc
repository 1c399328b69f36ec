// AVX2 multiplies no bytes exactly: quantised rows are 16 bits wide, and weights widened as they are read.
#include "int8_avx2.h"

#if CODA_X86

namespace coda {
namespace {

constexpr int64_t kRows = 4;  // rows that are computed together: their eight sums stay in registers

AVX2 float quantize(const float* x, int64_t n, int64_t depth, int64_t row, void* out) {
  auto* quantised = static_cast<int16_t*>(out) + row * depth;
  const float row_scale = row_scale_of(x, n);
  const __m256 row_scales = _mm256_set1_ps(row_scale);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(quantised + i), quantised_of(x + i, row_scales));
  }
  for (; i < n; ++i) quantised[i] = static_cast<int16_t>(quantise_one(x[i], row_scale));
  return row_scale;
}

// R rows times one panel.
template <int R>
AVX2 void multiply_panel(const Int8Product& p, const int8_t* panel, int64_t row, int64_t output) {
  const auto* quantised = static_cast<const int16_t*>(p.quantised) + row * p.depth;
  const int64_t depth = p.depth;
  __m256i sum[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
  for (int64_t k = 0; k < depth; k += 2) {
    const auto* at = reinterpret_cast<const __m128i*>(panel + k * kPanel);
    const __m256i w0 = _mm256_cvtepi8_epi16(_mm_loadu_si128(at)), w1 = _mm256_cvtepi8_epi16(_mm_loadu_si128(at + 1));
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      int32_t pair;
      std::memcpy(&pair, quantised + r * depth + k, sizeof pair);
      const __m256i a = _mm256_set1_epi32(pair);
      sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(a, w0));
      sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(a, w1));
    }
  }
  const __m256i nothing[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  write_sums(p, row, output, sum, nothing);
}

void multiply(const Int8Product& p) {
  for (int64_t n = 0; n < p.panels; ++n) {
    const int8_t* panel = p.weights + n * p.depth * kPanel;
    int64_t row = 0;
    for (; row + kRows <= p.rows; row += kRows) multiply_panel<kRows>(p, panel, row, n * kPanel);
    for (; row < p.rows; ++row) multiply_panel<1>(p, panel, row, n * kPanel);
  }
}

}  // namespace

const Int8Kernel kAvx2 = {"avx2", 2, 2, 1, sizeof(int16_t), has_avx2, quantize, multiply};

}  // namespace coda
#endif
