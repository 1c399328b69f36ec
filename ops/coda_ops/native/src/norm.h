// Sums and the layer norm of them, on rows of float32. No onnxruntime here.
#pragma once

#include <cstdint>

namespace coda {

// out = norm(x + y + shift) * scale + bias. Everything [width]; out is none of the others.
void add_norm(const float* x, const float* y, const float* shift, const float* scale, const float* bias, float epsilon,
              int64_t width, float* out);

// out = norm(word * row_scale + type + position) * scale + bias. Everything [width]; out is none of the others.
void embed_norm(const float* word, float row_scale, const float* type, const float* position, const float* scale,
                const float* bias, float epsilon, int64_t width, float* out);
void embed_norm(const int8_t* word, float row_scale, const float* type, const float* position, const float* scale,
                const float* bias, float epsilon, int64_t width, float* out);

}  // namespace coda
