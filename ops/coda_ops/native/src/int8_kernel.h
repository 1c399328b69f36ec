// What int8_linear.cc asks of each instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "int8_linear.h"
#include "simd.h"

namespace coda {

// A few rows times a few panels.
struct Int8Product {
  const void* quantised;    // of rows x depth, up to a multiple of the kernel's rows, as its quantize writes them
  const float* row_scales;  // [rows]
  const int8_t* weights;    // [panels, depth / group, kPanel, group]
  const int32_t* sums;      // [panels * kPanel]
  const float *scale, *bias;
  int64_t depth;  // inputs, padded
  int64_t rows, panels;
  float* y;         // [rows, stride]
  int64_t stride;   // outputs of the layer
  int64_t outputs;  // that are wanted: the last panel may hold fewer than kPanel
};

// The scale of a row whose largest magnitude has these bits. Where they are no finite number's it is NaN, and so
// is then all that the row gives.
inline float row_scale_for(int32_t size) {
  constexpr int32_t kInfinite = 0x7f800000;
  if (size >= kInfinite) return std::numeric_limits<float>::quiet_NaN();
  float top;
  std::memcpy(&top, &size, sizeof top);
  const float share = top / 127.0f;
  return share > 0 ? share : 1.0f;
}

struct Int8Kernel {
  const char* name;
  int64_t group;       // inputs of one output whose weights lie together
  int64_t padding;     // inputs are padded to a multiple of it
  int64_t rows;        // as many are read together
  int64_t element_size;  // bytes
  bool (*here)();      // whether this processor has it
  // Quantise one row of x to [-127, 127] and return its scale; half to even, as ONNX's Round does. What is padded
  // is never written: its weights are 0.
  float (*quantize)(const float* x, int64_t inputs, int64_t depth, int64_t row, void* quantised);
  void (*multiply)(const Int8Product& product);
};

#if CODA_X86
extern const Int8Kernel kAmx, kVnni, kAvxVnni, kAvx2;
#endif

}  // namespace coda
