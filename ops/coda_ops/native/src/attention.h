// Attention of one head of one text. No onnxruntime here.
#pragma once

#include <cstdint>
#include <vector>

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
  std::vector<float> keys;    // [width, padded tokens], transposed
  std::vector<float> values;  // [tokens, padded width]
  std::vector<float> scores;  // of a few queries, [queries, padded tokens]
  std::vector<float> mixed;   // [queries, padded width]
};

// out = softmax(query · keyᵀ * scale + bias) · value for the queries from first to last (exclusive).
void attend(const AttentionHead& head, int64_t first, int64_t last, AttentionScratch& scratch);

}  // namespace coda
