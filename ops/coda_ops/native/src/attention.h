// Attention of one head of one text. No onnxruntime here.
#pragma once

#include <cstdint>

#include "aligned.h"

namespace coda {

struct AttentionHead {
  const float* query;  // [queries, width], rows `query_stride` apart
  int64_t query_stride;
  const float* const* memory;      // [tokens], where each token lies that is attended to
  int64_t key_offset, value_offset;  // from there to its key and its value, [width] each
  const float* bias;  // added to the scaled scores, [queries, tokens], rows `bias_stride` apart: 0 for one of all queries
  int64_t bias_stride;
  float scale;
  int64_t tokens, width;
  float* out;  // [queries, width], rows `out_stride` apart
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
