// TakeTokens and PutTokens on rows of float32. No onnxruntime here.
#pragma once

#include <cstdint>

namespace coda {

// row += gate * update, nothing where the gate is 0. [width]
void add_gated(float* row, const float* update, float gate, int64_t width);

}  // namespace coda
