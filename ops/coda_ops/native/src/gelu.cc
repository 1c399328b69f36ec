#include "gelu.h"

#include <cmath>

#include "arithmetic.h"
#include "simd.h"

namespace coda {
namespace {

// erf(z) / z is fitted by a polynomial in 2 (z / 3.8)^2 - 1 for |z| up to 3.8, beyond which erf is 1 to 8e-8. What comes
// out is off by 7e-7 at most.
CODA_INLINE float gelu_of(float x) {
  constexpr float kTop = 3.8f, kRoot = 0.70710678f;
  const float z = x * kRoot, size = std::fabs(z), u = z * z * (2.0f / (kTop * kTop)) - 1.0f;
  float ratio = 0.0010267904726788402f;
  ratio = ratio * u - 0.002699573989957571f;
  ratio = ratio * u + 0.002353319898247719f;
  ratio = ratio * u - 0.003288578474894166f;
  ratio = ratio * u + 0.009965499863028526f;
  ratio = ratio * u - 0.018345104530453682f;
  ratio = ratio * u + 0.026684153825044632f;
  ratio = ratio * u - 0.038933560252189636f;
  ratio = ratio * u + 0.05505901947617531f;
  ratio = ratio * u - 0.07251700013875961f;
  ratio = ratio * u + 0.09083239734172821f;
  ratio = ratio * u - 0.11118542402982712f;
  ratio = ratio * u + 0.13773952424526215f;
  ratio = ratio * u - 0.18564119935035706f;
  ratio = ratio * u + 0.3721076250076294f;
  const float erf = size < kTop ? ratio * z : (z < 0.0f ? -1.0f : 1.0f);
  const float half = 0.5f * x;
  return half * erf + half;
}

CODA_INLINE void add_gelu_inline(const float* x, const float* bias, int64_t n, float* out) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = gelu_of(x[i] + bias[i]);
}

CODA_INLINE void gelu_inline(float* values, int64_t rows, int64_t n, int64_t stride) {
  for (int64_t row = 0; row < rows; ++row, values += stride) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) values[i] = gelu_of(values[i]);
  }
}

}  // namespace

CODA_SIMD(void, add_gelu, (const float* x, const float* bias, int64_t n, float* out), (x, bias, n, out))
CODA_SIMD(void, gelu, (float* values, int64_t rows, int64_t n, int64_t stride), (values, rows, n, stride))

}  // namespace coda
