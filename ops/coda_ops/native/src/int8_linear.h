// Products of float32 rows with int8 weights. No onnxruntime here.
#pragma once

#include <cstdint>
#include <vector>

namespace coda {

// Weights of one layer, packed for the loops of int8_linear.cc.
class Int8Weights {
 public:
  // weight: [inputs, outputs], 128 stands for 0; scale, bias: [outputs].
  Int8Weights(const uint8_t* weight, const float* scale, const float* bias, int64_t inputs, int64_t outputs);

  int64_t inputs() const { return inputs_; }
  int64_t outputs() const { return outputs_; }
  int64_t panels() const { return panels_; }

  // y = x · weight * scale + bias, every row of x rounded to 255 levels of its own, for the panels from first to last
  // (exclusive) of the outputs. x: [rows, inputs]; y: [rows, outputs].
  void multiply(const float* x, int64_t rows, int64_t first, int64_t last, float* y) const;

  // Whether this processor has what multiply is written for.
  static bool supported();

 private:
  int64_t inputs_, outputs_, pairs_, panels_;
  std::vector<int8_t> packed_;       // [panels, pairs, kPanel, 2]
  std::vector<float> scale_, bias_;  // [panels * kPanel]
};

}  // namespace coda
