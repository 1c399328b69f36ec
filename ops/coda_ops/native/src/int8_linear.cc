#include "int8_linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#define CODA_AVX2 1
#include <immintrin.h>
#endif

namespace coda {
namespace {

constexpr int kVectors = 2;             // of eight outputs
constexpr int64_t kPanel = 8 * kVectors;  // outputs that are computed together
constexpr int64_t kRows = 4;            // rows that are computed together: their eight sums stay in registers

// Working memory that a thread keeps from call to call.
struct Scratch {
  std::vector<int16_t> levels;  // [rows, 2 * pairs]
  std::vector<float> steps;     // [rows]
};

#if CODA_AVX2

// x → levels in [-127, 127] and what one of them is worth; half to even, as ONNX's Round does.
__attribute__((target("avx2,fma"))) float quantize_row(const float* x, int64_t n, int16_t* levels) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  __m256 highest = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) highest = _mm256_max_ps(highest, _mm256_andnot_ps(sign, _mm256_loadu_ps(x + i)));
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, highest);
  float top = *std::max_element(lanes, lanes + 8);
  for (int64_t j = i; j < n; ++j) top = std::max(top, std::fabs(x[j]));
  const float step = top > 0 ? top / 127.0f : 1.0f;
  const __m256 steps = _mm256_set1_ps(step);
  for (i = 0; i + 8 <= n; i += 8) {
    const __m256i wide = _mm256_cvtps_epi32(_mm256_div_ps(_mm256_loadu_ps(x + i), steps));
    const __m128i narrow = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(levels + i), narrow);
  }
  for (; i < n; ++i) levels[i] = static_cast<int16_t>(std::nearbyint(x[i] / step));
  return step;
}

// R rows times one panel of weights. panel: [pairs, kPanel, 2]; levels: R rows `stride` apart; y: R rows.
template <int R>
__attribute__((target("avx2,fma"))) void multiply_panel(const int8_t* panel, const int16_t* levels, int64_t stride,
                                                        int64_t pairs, const float* steps, const float* scale,
                                                        const float* bias, float* y, int64_t outputs, int64_t width) {
  __m256i sum[R][kVectors];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm256_setzero_si256();
  }
#pragma GCC unroll 2
  for (int64_t k = 0; k < pairs; ++k) {
    __m256i w[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      w[v] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(panel + k * 2 * kPanel + 16 * v)));
    }
    for (int r = 0; r < R; ++r) {
      int32_t pair;
      std::memcpy(&pair, levels + r * stride + 2 * k, sizeof pair);
      const __m256i a = _mm256_set1_epi32(pair);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm256_add_epi32(sum[r][v], _mm256_madd_epi16(a, w[v]));
    }
  }
  alignas(32) float out[kPanel];
  for (int r = 0; r < R; ++r) {
    const __m256 step = _mm256_set1_ps(steps[r]);
    for (int v = 0; v < kVectors; ++v) {
      const __m256 scaled =
          _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum[r][v]), step), _mm256_loadu_ps(scale + 8 * v));
      _mm256_store_ps(out + 8 * v, _mm256_add_ps(scaled, _mm256_loadu_ps(bias + 8 * v)));
    }
    std::memcpy(y + r * outputs, out, static_cast<size_t>(width) * sizeof(float));
  }
}

#endif

}  // namespace

bool Int8Weights::supported() {
#if CODA_AVX2
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

Int8Weights::Int8Weights(const uint8_t* weight, const float* scale, const float* bias, int64_t inputs, int64_t outputs)
    : inputs_(inputs), outputs_(outputs), pairs_((inputs + 1) / 2), panels_((outputs + kPanel - 1) / kPanel) {
  packed_.assign(static_cast<size_t>(panels_ * pairs_ * kPanel * 2), 0);
  for (int64_t k = 0; k < inputs; ++k) {
    for (int64_t n = 0; n < outputs; ++n) {
      const int64_t at = ((n / kPanel * pairs_ + k / 2) * kPanel + n % kPanel) * 2 + k % 2;
      packed_[static_cast<size_t>(at)] = static_cast<int8_t>(static_cast<int>(weight[k * outputs + n]) - 128);
    }
  }
  scale_.assign(static_cast<size_t>(panels_ * kPanel), 0.0f);
  bias_ = scale_;
  std::copy(scale, scale + outputs, scale_.begin());
  std::copy(bias, bias + outputs, bias_.begin());
}

void Int8Weights::multiply(const float* x, int64_t rows, int64_t first, int64_t last, float* y) const {
#if CODA_AVX2
  thread_local Scratch scratch;
  const int64_t stride = 2 * pairs_;
  scratch.levels.assign(static_cast<size_t>(rows * stride), 0);
  scratch.steps.resize(static_cast<size_t>(rows));
  for (int64_t r = 0; r < rows; ++r) {
    scratch.steps[r] = quantize_row(x + r * inputs_, inputs_, scratch.levels.data() + r * stride);
  }
  for (int64_t p = first; p < last; ++p) {
    const int8_t* panel = packed_.data() + p * pairs_ * kPanel * 2;
    const float *scale = scale_.data() + p * kPanel, *bias = bias_.data() + p * kPanel;
    const int64_t width = std::min(kPanel, outputs_ - p * kPanel);
    const auto run = [&](auto kernel, int64_t r) {
      kernel(panel, scratch.levels.data() + r * stride, stride, pairs_, scratch.steps.data() + r, scale, bias,
             y + r * outputs_ + p * kPanel, outputs_, width);
    };
    int64_t r = 0;
    for (; r + kRows <= rows; r += kRows) run(multiply_panel<kRows>, r);
    for (; r < rows; ++r) run(multiply_panel<1>, r);
  }
#else
  (void)x, (void)rows, (void)first, (void)last, (void)y;
#endif
}

}  // namespace coda
