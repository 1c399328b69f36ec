// residual + activation(x · down + down_bias) · up + up_bias, a few rows at a time; without an activation there is no
// down_bias either, as it would go into up_bias. No onnxruntime here.
#pragma once

#include <cstdint>

#include "aligned.h"

namespace coda {

enum class Activation { kNone, kRelu, kSwish };

// Weights with both widths padded to what registers hold: in place where they fit as they are, in `room` otherwise.
struct AdapterWeights {
  const float *down, *down_bias, *up, *up_bias;  // [width, hidden], [hidden], [hidden, columns], [columns]
  int64_t width, hidden, columns;
  AlignedVector<float> room[4];

  // down: [width, bottleneck], up: [bottleneck, width]; down_bias null for none.
  void set(const float* down, const float* down_bias, const float* up, const float* up_bias, int64_t width,
           int64_t bottleneck);

  // Once they are used: keep no large room.
  void release();
};

struct AdapterScratch {
  AlignedVector<float> hidden, raised;
};

// y for so many rows, all [rows, width]; y may be residual itself.
void add_adapter(const AdapterWeights& weights, Activation activation, const float* residual, const float* x,
                 int64_t rows, float* y, AdapterScratch& scratch);

}  // namespace coda
