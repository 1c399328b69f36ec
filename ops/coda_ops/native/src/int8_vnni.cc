// AVX-512 VNNI multiplies unsigned bytes by signed ones: quantised rows have zero point 128, and 128 times the sum of
// an output's weights is taken away again.
#include "int8_avx512.h"

#if CODA_X86
#include <algorithm>
#include <cstring>

#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

namespace coda {
namespace {

constexpr int kRows = 6, kTogether = 4;  // rows by panels whose sums stay in registers; loops over them are unrolled

bool here() { return allowed(kVnni.name) && has_avx512() && __builtin_cpu_supports("avx512vnni"); }

AVX512 float quantize(const float* x, int64_t n, int64_t depth, int64_t row, void* quantised) {
  return quantize_bytes(x, n, static_cast<char*>(quantised) + row * depth, 64, '\x80');
}

// The sums of a block into y. sums: [rows, panels, kPanel]. Not inlined: what it needs would drive the sums out of the
// registers while they are added up, at half the speed.
__attribute__((noinline)) AVX512 void write_block(const Int8Product& p, int64_t row, int rows, int64_t panel, int panels,
                                                  const int32_t* sums) {
  for (int n = 0; n < panels; ++n) {
    const int64_t output = (panel + n) * kPanel;
    const __m512i raised = _mm512_slli_epi32(_mm512_loadu_si512(p.sums + output), 7);
    const __m512 scale = _mm512_loadu_ps(p.scale + output), bias = _mm512_loadu_ps(p.bias + output);
    for (int r = 0; r < rows; ++r) {
      const __m512i sum = _mm512_loadu_si512(sums + (r * panels + n) * kPanel);
      const __m512 total = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, raised));
      const __m512 scaled = _mm512_mul_ps(_mm512_mul_ps(total, _mm512_set1_ps(p.row_scales[row + r])), scale);
      _mm512_mask_storeu_ps(p.y + (row + r) * p.stride + output, below(p.outputs - output), _mm512_add_ps(scaled, bias));
    }
  }
}

template <int R, int P>
VNNI void multiply_block(const Int8Product& p, int64_t row, int64_t panel) {
  const auto* quantised = static_cast<const uint8_t*>(p.quantised) + row * p.depth;
  const int8_t* weights = p.weights + panel * p.depth * kPanel;
  const int64_t depth = p.depth;
  __m512i sum[R][P];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < P; ++n) sum[r][n] = _mm512_setzero_si512();
  }
  for (int64_t k = 0; k < depth; k += 4) {
    __m512i w[P];
#pragma GCC unroll 8
    for (int n = 0; n < P; ++n) w[n] = _mm512_loadu_si512(weights + n * depth * kPanel + k * kPanel);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      int32_t four;
      std::memcpy(&four, quantised + r * depth + k, sizeof four);
      const __m512i a = _mm512_set1_epi32(four);
#pragma GCC unroll 8
      for (int n = 0; n < P; ++n) sum[r][n] = _mm512_dpbusd_epi32(sum[r][n], a, w[n]);
    }
  }
  int32_t sums[R * P * kPanel];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < P; ++n) _mm512_storeu_si512(sums + (r * P + n) * kPanel, sum[r][n]);
  }
  write_block(p, row, R, panel, P, sums);
}

template <int P>
void multiply_panels(const Int8Product& p, int64_t panel) {
  int64_t row = 0;
  for (; row + kRows <= p.rows; row += kRows) multiply_block<kRows, P>(p, row, panel);
  for (; row + 2 <= p.rows; row += 2) multiply_block<2, P>(p, row, panel);
  if (row < p.rows) multiply_block<1, P>(p, row, panel);
}

void multiply(const Int8Product& p) {
  int64_t panel = 0;
  for (; panel + kTogether <= p.panels; panel += kTogether) multiply_panels<kTogether>(p, panel);
  for (; panel < p.panels; ++panel) multiply_panels<1>(p, panel);
}

}  // namespace

const Int8Kernel kVnni = {"avx512-vnni", 4, 4, 1, 1, here, quantize, multiply};

}  // namespace coda
#endif
