// AVX-512 VNNI multiplies unsigned bytes by signed ones: levels are raised by 128, and as many times the sum of an
// output's weights is taken away again.
#include "int8_avx512.h"

#if CODA_X86
#include <algorithm>
#include <cstring>

#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

namespace coda {
namespace {

constexpr int kRows = 6, kTogether = 4;  // rows by panels whose sums stay in registers

bool here() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

AVX512 float quantize(const float* x, int64_t n, int64_t depth, int64_t row, void* levels) {
  return quantize_bytes(x, n, static_cast<char*>(levels) + row * depth, 64, '\x80');
}

// Sixteen sums of one row into y.
AVX512 void write_panel(const Int8Product& p, int64_t row, int64_t output, __m512i sum) {
  const __m512 scaled = _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(p.steps[row])),
                                      _mm512_loadu_ps(p.scale + output));
  _mm512_mask_storeu_ps(p.y + row * p.stride + output, below(p.outputs - output),
                        _mm512_add_ps(scaled, _mm512_loadu_ps(p.bias + output)));
}

template <int R, int P>
VNNI void multiply_block(const Int8Product& p, int64_t row, int64_t panel) {
  const auto* levels = static_cast<const uint8_t*>(p.levels) + row * p.depth;
  const int8_t* weights = p.weights + panel * p.depth * kPanel;
  __m512i sum[R][P];
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < P; ++n) sum[r][n] = _mm512_setzero_si512();
  }
  for (int64_t k = 0; k < p.depth; k += 4) {
    __m512i w[P];
    for (int n = 0; n < P; ++n) w[n] = _mm512_loadu_si512(weights + n * p.depth * kPanel + k * kPanel);
    for (int r = 0; r < R; ++r) {
      int32_t four;
      std::memcpy(&four, levels + r * p.depth + k, sizeof four);
      const __m512i a = _mm512_set1_epi32(four);
      for (int n = 0; n < P; ++n) sum[r][n] = _mm512_dpbusd_epi32(sum[r][n], a, w[n]);
    }
  }
  for (int n = 0; n < P; ++n) {
    const int64_t output = (panel + n) * kPanel;
    const __m512i raised = _mm512_slli_epi32(_mm512_loadu_si512(p.sums + output), 7);
    for (int r = 0; r < R; ++r) write_panel(p, row + r, output, _mm512_sub_epi32(sum[r][n], raised));
  }
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
