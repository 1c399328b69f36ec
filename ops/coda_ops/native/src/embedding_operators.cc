// What becomes of ids before the first layer.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "norm.h"
#include "operators.h"

namespace coda {
namespace {

// Rows of a table that ids of one shape choose; ids below 0 count from its end, as Gather has it.
struct Lookup {
  Lookup(const Ort::ConstValue& table, const Ort::ConstValue& ids)
      : table_shape(shape_of(table)), ids_shape(shape_of(ids)), ids(ids.GetTensorData<int64_t>()) {}

  bool fits(int64_t width) const {
    return table_shape.size() == 2 && table_shape[1] == width && ids_shape.size() == 2;
  }

  // Whether ids are of this shape, or serve all examples or tokens alike.
  bool serves(const std::vector<int64_t>& shape) const {
    return (ids_shape[0] == shape[0] || ids_shape[0] == 1) && (ids_shape[1] == shape[1] || ids_shape[1] == 1);
  }

  void check() const {
    const int64_t rows = table_shape[0];
    const int64_t* end = ids + ids_shape[0] * ids_shape[1];
    const int64_t* bad = std::find_if(ids, end, [rows](int64_t i) { return i < -rows || i >= rows; });
    if (bad != end) {
      throw std::runtime_error("id " + std::to_string(*bad) + " lies outside of a table of " + std::to_string(rows) + " rows");
    }
  }

  int64_t row(int64_t text, int64_t token) const {
    const int64_t id = ids[(ids_shape[0] == 1 ? 0 : text) * ids_shape[1] + (ids_shape[1] == 1 ? 0 : token)];
    return id < 0 ? id + table_shape[0] : id;
  }

  std::vector<int64_t> table_shape, ids_shape;
  const int64_t* ids;
};

template <typename Word>
struct EmbedKernel {
  static constexpr bool kRounded = std::is_same_v<Word, int8_t>;

  explicit EmbedKernel(const OrtKernelInfo* info) : epsilon_(epsilon_of(info)) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    constexpr const char* kName = kRounded ? "Int8EmbedNorm" : "EmbedNorm";
    return guarded(kName, [&]() -> OrtStatusPtr {
      Ort::KernelContext context(raw);
      constexpr size_t kIds = kRounded ? 2 : 1;  // the scales of the words stand before them
      const auto words = context.GetInput(0), types = context.GetInput(kIds + 1), positions = context.GetInput(kIds + 3);
      const Lookup word(words, context.GetInput(kIds)), type(types, context.GetInput(kIds + 2));
      const Lookup position(positions, context.GetInput(kIds + 4));
      const auto scale = context.GetInput(kIds + 5), bias = context.GetInput(kIds + 6);
      const int64_t width = word.table_shape.size() == 2 ? word.table_shape[1] : 0;
      if (!word.fits(width) || !type.fits(width) || !position.fits(width) || !type.serves(word.ids_shape) ||
          !position.serves(word.ids_shape) || shape_of(scale) != std::vector<int64_t>{width} ||
          shape_of(bias) != shape_of(scale) ||
          (kRounded && shape_of(context.GetInput(1)) != std::vector<int64_t>{word.table_shape[0], 1})) {
        return invalid(std::string(kName) + ": tables must be [rows, width], ids [batch, tokens] or 1 in place of either, scale and bias "
                       "[width], words_scale [rows, 1]");
      }
      for (const Lookup* one : {&word, &type, &position}) one->check();
      const float* row_scales = nullptr;
      if constexpr (kRounded) row_scales = context.GetInput(1).GetTensorData<float>();
      const auto* w = words.GetTensorData<Word>();
      const auto *t = types.GetTensorData<float>(), *p = positions.GetTensorData<float>();
      const auto *s = scale.GetTensorData<float>(), *b = bias.GetTensorData<float>();
      const int64_t batch = word.ids_shape[0], tokens = word.ids_shape[1];
      const int64_t out[] = {batch, tokens, width};
      auto* y = context.GetOutput(0, out, 3).GetTensorMutableData<float>();
      parallel(raw, batch * tokens, 4 * width * static_cast<int64_t>(sizeof(float)), [&](int64_t row) {
        const int64_t text = row / tokens, token = row % tokens, id = word.row(text, token);
        embed_norm(w + id * width, kRounded ? row_scales[id] : 1.0f, t + type.row(text, token) * width,
                   p + position.row(text, token) * width, s, b, epsilon_, width, y + row * width);
      });
      return nullptr;
    });
  }

 private:
  float epsilon_;
};

template <typename Word>
struct EmbedOp : CodaOp<EmbedOp<Word>, EmbedKernel<Word>> {
  static constexpr bool kRounded = EmbedKernel<Word>::kRounded;
  static constexpr const char* kName = kRounded ? "Int8EmbedNorm" : "EmbedNorm";
  static constexpr ONNXTensorElementDataType kOutputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};

  size_t GetInputTypeCount() const { return kRounded ? 9 : 8; }

  ONNXTensorElementDataType GetInputType(size_t i) const {
    if (kRounded && i == 0) return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
    const size_t ids = kRounded ? 2 : 1;
    return i == ids || i == ids + 2 || i == ids + 4 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64
                                                    : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }

  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) {
    const Shape &words = context.GetInputShape(0), &ids = context.GetInputShape(kRounded ? 2 : 1);
    if (words.size() != 2 || ids.size() != 2) return Ort::Status(nullptr);
    return set_shape(context, 0, Shape{ids[0], ids[1], words[1]});
  }
};

}  // namespace

std::vector<const OrtCustomOp*> embedding_operators() {
  static const EmbedOp<float> embed;
  static const EmbedOp<int8_t> int8_embed;
  return {&embed, &int8_embed};
}

}  // namespace coda
