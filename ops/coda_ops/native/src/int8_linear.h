// Products of float32 rows with int8 weights. No onnxruntime here.
#pragma once

#include <cstdint>

#include "aligned.h"

namespace coda {

constexpr int64_t kPanel = 16;  // outputs whose weights lie together

struct Int8Kernel;

// Quantised rows of x, and their scales. A thread keeps it from call to call.
struct Int8Rows {
  AlignedVector<char> quantised;    // of padded rows x padded inputs, as the kernel lays them out
  AlignedVector<float> row_scales;  // [padded rows]
};

// Weights of one layer, packed for the best kernel that this processor has.
class Int8Weights {
 public:
  // weight: [inputs, outputs], with zero point 128; scale, bias: [outputs].
  Int8Weights(const uint8_t* weight, const float* scale, const float* bias, int64_t inputs, int64_t outputs);

  int64_t inputs() const { return inputs_; }
  int64_t outputs() const { return outputs_; }
  int64_t panels() const { return panels_; }

  // Make room for so many rows.
  void reserve(int64_t rows, Int8Rows& prepared) const;

  // Quantise the rows from first to last (exclusive) of x, [rows, inputs], each with a scale of its own.
  void quantize(const float* x, int64_t first, int64_t last, Int8Rows& prepared) const;

  // y = x · weight * scale + bias for some rows, from a multiple of 32 on, and the outputs of some panels. y: [rows,
  // outputs].
  void multiply(const Int8Rows& prepared, int64_t first_row, int64_t last_row, int64_t first_panel, int64_t last_panel,
                float* y) const;

  // Whether this processor has a kernel.
  static bool supported();

 private:
  const Int8Kernel& kernel_;
  int64_t inputs_, outputs_, depth_, panels_;
  AlignedVector<int8_t> packed_;       // [panels, depth / group, kPanel, group]
  AlignedVector<int32_t> sums_;        // [panels * kPanel], of each output's weights
  AlignedVector<float> scale_, bias_;  // [panels * kPanel]
};

}  // namespace coda
