// Attention of one head of one text. No onnxruntime here.
#pragma once

#include <cstdint>

#include "aligned.h"

namespace coda {

struct AttentionHead {
  const float *query, *key, *value;  // [tokens, width], rows `stride` apart
  int64_t stride;
  const float* bias;  // [tokens], of the keys, added to the scaled scores
  float scale;
  int64_t tokens, width;
  float* out;  // [tokens, width], rows `out_stride` apart
  int64_t out_stride;
};

// Working memory that a thread keeps from call to call.
struct AttentionScratch {
  AlignedVector<float> keys;    // [width, padded tokens], transposed
  AlignedVector<float> values;  // [tokens, padded width]
  AlignedVector<float> scores;  // of a few queries, [queries, padded tokens]
  AlignedVector<float> mixed;   // [queries, padded width]
};

// out = softmax(query · keyᵀ * scale + bias) · value for the queries from first to last (exclusive).
void attend(const AttentionHead& head, int64_t first, int64_t last, AttentionScratch& scratch);

}  // namespace coda
