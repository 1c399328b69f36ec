#include "norm.h"

#include <cmath>

#include "simd.h"

namespace coda {

// Three walks over a row that stays in the first cache; the second one takes the mean away, so that squares of large
// numbers do not cancel.
CODA_SIMD void add_norm(const float* x, const float* y, const float* shift, const float* scale, const float* bias,
                        float epsilon, int64_t width, float* __restrict__ out) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; ++i) {
    out[i] = x[i] + (y[i] + shift[i]);
    sum += out[i];
  }
  const float mean = sum / static_cast<float>(width);
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < width; ++i) {
    out[i] -= mean;
    squares += out[i] * out[i];
  }
  const float inverse = 1.0f / std::sqrt(squares / static_cast<float>(width) + epsilon);
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) out[i] = out[i] * inverse * scale[i] + bias[i];
}

}  // namespace coda
