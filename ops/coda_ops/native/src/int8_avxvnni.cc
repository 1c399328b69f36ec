// AVX-VNNI, of processors without AVX-512, multiplies bytes as AVX-512 VNNI does, eight outputs at once.
#include "int8_avx2.h"

#if CODA_X86 && __GNUC__ >= 11
#include <cpuid.h>

#define AVXVNNI __attribute__((target("avx2,fma,avxvnni")))

namespace coda {
namespace {

constexpr int kRows = 6;  // by one panel: their twelve sums stay in registers

bool here() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return allowed(kAvxVnni.name) && has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1) != 0;
}

// Quantised rows have zero point 128: the left side of the matmul is unsigned.
AVXVNNI float quantize(const float* x, int64_t n, int64_t depth, int64_t row, void* out) {
  auto* quantised = static_cast<uint8_t*>(out) + row * depth;
  const float row_scale = row_scale_of(x, n);
  const __m256 row_scales = _mm256_set1_ps(row_scale);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i raised = _mm_add_epi16(quantised_of(x + i, row_scales), _mm_set1_epi16(128));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(quantised + i), _mm_packus_epi16(raised, raised));
  }
  for (; i < n; ++i) quantised[i] = static_cast<uint8_t>(static_cast<unsigned>(quantise_one(x[i], row_scale)) + 128);
  return row_scale;
}

template <int R>
AVXVNNI void multiply_panel(const Int8Product& p, const int8_t* panel, int64_t row, int64_t output) {
  const auto* quantised = static_cast<const uint8_t*>(p.quantised) + row * p.depth;
  const int64_t depth = p.depth;
  __m256i sum[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
  for (int64_t k = 0; k < depth; k += 4) {
    const auto* at = reinterpret_cast<const __m256i*>(panel + k * kPanel);
    const __m256i w0 = _mm256_loadu_si256(at), w1 = _mm256_loadu_si256(at + 1);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      int32_t four;
      std::memcpy(&four, quantised + r * depth + k, sizeof four);
      const __m256i a = _mm256_set1_epi32(four);
      sum[r][0] = _mm256_dpbusd_avx_epi32(sum[r][0], a, w0);
      sum[r][1] = _mm256_dpbusd_avx_epi32(sum[r][1], a, w1);
    }
  }
  const auto* columns = reinterpret_cast<const __m256i*>(p.sums + output);
  const __m256i raised[2] = {_mm256_slli_epi32(_mm256_loadu_si256(columns), 7),
                             _mm256_slli_epi32(_mm256_loadu_si256(columns + 1), 7)};
  write_sums(p, row, output, sum, raised);
}

void multiply(const Int8Product& p) {
  for (int64_t n = 0; n < p.panels; ++n) {
    const int8_t* panel = p.weights + n * p.depth * kPanel;
    int64_t row = 0;
    for (; row + kRows <= p.rows; row += kRows) multiply_panel<kRows>(p, panel, row, n * kPanel);
    for (; row + 2 <= p.rows; row += 2) multiply_panel<2>(p, panel, row, n * kPanel);
    if (row < p.rows) multiply_panel<1>(p, panel, row, n * kPanel);
  }
}

}  // namespace

const Int8Kernel kAvxVnni = {"avx-vnni", 4, 4, 1, 1, here, quantize, multiply};

}  // namespace coda
#elif CODA_X86
namespace coda {
const Int8Kernel kAvxVnni = {"avx-vnni", 4, 4, 1, 1, [] { return false; }, nullptr, nullptr};
}
#endif
