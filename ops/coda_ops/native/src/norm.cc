#include "norm.h"

#include <cmath>

#include "arithmetic.h"
#include "simd.h"

namespace coda {

namespace {

// The second and third walk over a row that stays in the first cache; the first left it in `out` and added it up. The
// mean is taken away before squares are, so that those of large numbers do not cancel.
CODA_INLINE void norm_in_place(float* __restrict__ out, float sum, const float* scale, const float* bias, float epsilon,
                               int64_t width) {
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

template <typename Word>
CODA_INLINE void embed_norm_inline(const Word* word, float row_scale, const float* type, const float* position,
                                   const float* scale, const float* bias, float epsilon, int64_t width,
                                   float* __restrict__ out) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; ++i) {
    out[i] = static_cast<float>(word[i]) * row_scale + type[i] + position[i];
    sum += out[i];
  }
  norm_in_place(out, sum, scale, bias, epsilon, width);
}

CODA_INLINE void add_norm_inline(const float* x, const float* y, const float* shift, const float* scale,
                                 const float* bias, float epsilon, int64_t width, float* __restrict__ out) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; ++i) {
    out[i] = x[i] + (y[i] + shift[i]);
    sum += out[i];
  }
  norm_in_place(out, sum, scale, bias, epsilon, width);
}

}  // namespace

CODA_SIMD(void, add_norm,
          (const float* x, const float* y, const float* shift, const float* scale, const float* bias, float epsilon,
           int64_t width, float* __restrict__ out),
          (x, y, shift, scale, bias, epsilon, width, out))
CODA_SIMD(void, embed_norm,
          (const float* word, float row_scale, const float* type, const float* position, const float* scale,
           const float* bias, float epsilon, int64_t width, float* __restrict__ out),
          (word, row_scale, type, position, scale, bias, epsilon, width, out))
CODA_SIMD(void, embed_norm,
          (const int8_t* word, float row_scale, const float* type, const float* position, const float* scale,
           const float* bias, float epsilon, int64_t width, float* __restrict__ out),
          (word, row_scale, type, position, scale, bias, epsilon, width, out))

}  // namespace coda
