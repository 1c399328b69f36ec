// What is done to single tokens, rows of float32. No onnxruntime here.
#pragma once

#include <cstdint>

namespace coda {

// row += gate * update, nothing where the gate is 0. [width]
void add_gated(float* row, const float* update, float gate, int64_t width);

// row += gate * (now - before), nothing where the gate is 0. [width] each
void add_gated_difference(float* row, const float* now, const float* before, float gate, int64_t width);

// row · weight. [width] each
float score(const float* row, const float* weight, int64_t width);

}  // namespace coda
