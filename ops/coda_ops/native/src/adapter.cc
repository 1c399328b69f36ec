#include "adapter.h"

#include <algorithm>
#include <cmath>

#include "arithmetic.h"
#include "scratch.h"
#include "simd.h"

namespace coda {
namespace {

constexpr int64_t kRows = 16;  // whose sums stay in the first cache

// rows x columns numbers in rows of `wide`, what is new 0; the same pointer where nothing is new.
const float* widened(const float* from, int64_t rows, int64_t columns, int64_t tall, int64_t wide,
                     AlignedVector<float>& room) {
  if (rows == tall && columns == wide) return from;
  room.assign(static_cast<size_t>(tall * wide), 0.0f);
  for (int64_t row = 0; row < rows; ++row) {
    std::copy(from + row * columns, from + (row + 1) * columns, room.begin() + row * wide);
  }
  return room.data();
}

CODA_INLINE void relu(float* values, const float* bias, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float value = values[i] + bias[i];
    values[i] = value < 0.0f ? 0.0f : value;  // NaN stays
  }
}

// v / (1 + exp(-v)), by the exponential that cannot overflow.
CODA_INLINE void swish(float* values, const float* bias, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float value = values[i] + bias[i];
    const float share = exp_nonpositive(-std::fabs(value));
    values[i] = value * ((value > 0.0f ? 1.0f : share) / (1.0f + share));
  }
}

template <int L, int R, int P>
CODA_INLINE void add_inline(const AdapterWeights& w, Activation activation, const float* residual, const float* x,
                            int64_t rows, float* y, AdapterScratch& scratch) {
  float *hidden = scratch.hidden.data(), *raised = scratch.raised.data();
  for (int64_t first = 0; first < rows; first += kRows) {
    const int64_t count = std::min(kRows, rows - first);
    multiply<L, R, P>(x + first * w.width, w.width, count, w.down, w.hidden, w.width, hidden);
    for (int64_t r = 0; r < count; ++r) {
      if (activation == Activation::kRelu) {
        relu(hidden + r * w.hidden, w.down_bias, w.hidden);
      } else if (activation == Activation::kSwish) {
        swish(hidden + r * w.hidden, w.down_bias, w.hidden);
      }
    }
    multiply<L, R, P>(hidden, w.hidden, count, w.up, w.columns, w.hidden, raised);
    for (int64_t r = 0; r < count; ++r) {
      const float *added = residual + (first + r) * w.width, *from = raised + r * w.columns;
      float* to = y + (first + r) * w.width;
#pragma omp simd
      for (int64_t i = 0; i < w.width; ++i) to[i] = added[i] + (from[i] + w.up_bias[i]);
    }
  }
}

#if CODA_X86
__attribute__((target("arch=x86-64-v4,prefer-vector-width=512"))) void add_v4(
    const AdapterWeights& w, Activation activation, const float* residual, const float* x, int64_t rows, float* y,
    AdapterScratch& scratch) {
  add_inline<16, 8, 2>(w, activation, residual, x, rows, y, scratch);
}
__attribute__((target("arch=x86-64-v3"))) void add_v3(const AdapterWeights& w, Activation activation,
                                                      const float* residual, const float* x, int64_t rows, float* y,
                                                      AdapterScratch& scratch) {
  add_inline<8, 4, 2>(w, activation, residual, x, rows, y, scratch);
}
#endif

void add_plain(const AdapterWeights& w, Activation activation, const float* residual, const float* x, int64_t rows,
               float* y, AdapterScratch& scratch) {
  add_inline<4, 4, 2>(w, activation, residual, x, rows, y, scratch);
}

using Add = void (*)(const AdapterWeights&, Activation, const float*, const float*, int64_t, float*, AdapterScratch&);

Add choose() {
#if CODA_X86
  if (has_avx512()) return add_v4;
  if (has_avx2()) return add_v3;
#endif
  return add_plain;
}

}  // namespace

void AdapterWeights::set(const float* given_down, const float* given_down_bias, const float* given_up,
                         const float* given_up_bias, int64_t given_width, int64_t bottleneck) {
  width = given_width;
  hidden = padded(bottleneck);
  columns = padded(width);
  down = widened(given_down, width, bottleneck, width, hidden, room[0]);
  down_bias = given_down_bias == nullptr ? nullptr : widened(given_down_bias, 1, bottleneck, 1, hidden, room[1]);
  up = widened(given_up, bottleneck, width, hidden, columns, room[2]);
  up_bias = widened(given_up_bias, 1, width, 1, columns, room[3]);
}

void AdapterWeights::release() { keep_small(room[0], room[1], room[2], room[3]); }

void add_adapter(const AdapterWeights& weights, Activation activation, const float* residual, const float* x,
                 int64_t rows, float* y, AdapterScratch& scratch) {
  static const Add chosen = choose();
  scratch.hidden.resize(static_cast<size_t>(kRows * weights.hidden));
  scratch.raised.resize(static_cast<size_t>(kRows * weights.columns));
  chosen(weights, activation, residual, x, rows, y, scratch);
  keep_small(scratch.hidden, scratch.raised);
}

}  // namespace coda
