// GELU by the error function, as BERT has it. No onnxruntime here.
#pragma once

#include <cstdint>

namespace coda {

// out = gelu(x + bias), n numbers each; out may be x.
void add_gelu(const float* x, const float* bias, int64_t n, float* out);

// values = gelu(values), of rows of n numbers that begin `stride` apart.
void gelu(float* values, int64_t rows, int64_t n, int64_t stride);

}  // namespace coda
