// What the operators that choose and move tokens are to onnxruntime, whichever processor their kernels run on: attributes,
// types, shapes, and what is refused.
#pragma once

#include <cmath>
#include <mutex>
#include <set>

#include "operators.h"
#include "schedule.h"

namespace coda {

constexpr int64_t kMostTokens = INT32_MAX;  // of a row, so that slots can be counted at every r

// Attributes of Route, checked.
struct RouteAttributes {
  explicit RouteAttributes(const OrtKernelInfo* raw) {
    numerator = attribute<int64_t>(raw, "numerator");
    denominator = attribute<int64_t>(raw, "denominator");
    const auto iterations = attribute<int64_t>(raw, "iterations");
    const auto start = attribute<float>(raw, "epsilon_start"), decay = attribute<float>(raw, "epsilon_decay"),
               final = attribute<float>(raw, "epsilon_final");
    constexpr int64_t kMostIterations = 1000;
    if (denominator < 1 || numerator < denominator || numerator > kMostTokens) {
      throw std::runtime_error("r = numerator / denominator must be at least 1, in numbers below 2^31");
    }
    if (iterations < 1 || iterations > kMostIterations) throw std::runtime_error("iterations must be 1 to 1000");
    if (start <= 0 || decay <= 0 || final <= 0) throw std::runtime_error("epsilons and their decay must be above 0");
    epsilons = coda::epsilons(iterations, start, decay, final);
    if (!std::isfinite(epsilons.back())) throw std::runtime_error("epsilons must stay finite numbers");
  }

  int64_t numerator, denominator;
  std::vector<double> epsilons;
};

// What a call of Route is about.
struct RouteSizes {
  RouteSizes(const Ort::KernelContext& context, const RouteAttributes& attributes) {
    const auto shape = shape_of(context.GetInput(0));
    if (shape.size() != 2 || shape_of(context.GetInput(1)) != shape) {
      throw std::runtime_error("scores and mask must both be [batch, tokens]");
    }
    batch = shape[0], tokens = shape[1];
    if (tokens > kMostTokens) throw std::runtime_error("scores must have less than 2^31 tokens");
    slots = slot_count(tokens, attributes.numerator, attributes.denominator);
  }

  int64_t batch, tokens, slots;
};

// What tokens are put back as: updates that are added, what they have become and were, or what they have become alone, which
// is blended with what is there.
enum class Put { kUpdate, kDifference, kBlend };

constexpr const char* name_of(Put put) {
  return put == Put::kUpdate ? "PutTokens" : put == Put::kDifference ? "PutDifference" : "BlendTokens";
}

// What a call of an operator that moves tokens is about.
struct TokenSizes {
  int64_t batch, tokens, slots, width;

  static TokenSizes of_take(const Ort::KernelContext& context) {
    const auto x = shape_of(context.GetInput(0)), indices = shape_of(context.GetInput(1));
    if (x.size() != 3 || indices.size() != 2 || indices[0] != x[0]) {
      throw std::runtime_error("x must be [batch, tokens, width] and indices [batch, slots]");
    }
    return {x[0], x[1], indices[1], x[2]};
  }

  static TokenSizes of_put(const Ort::KernelContext& context, Put put) {
    const bool difference = put == Put::kDifference;
    return of_change(context, "gates", put == Put::kUpdate ? "update" : "what is put back", difference ? 5 : 4);
  }

  static TokenSizes of_set(const Ort::KernelContext& context) { return of_change(context, "used", "rows", 4); }

 private:
  // Inputs are base, indices, one that says which slots count, and what is moved.
  static TokenSizes of_change(const Ort::KernelContext& context, const char* slots, const char* what, size_t inputs) {
    const auto base = shape_of(context.GetInput(0)), indices = shape_of(context.GetInput(1));
    const bool known = base.size() == 3 && indices.size() == 2 && indices[0] == base[0];
    const auto moved = known ? std::vector<int64_t>{indices[0], indices[1], base[2]} : std::vector<int64_t>{};
    bool fits = known && shape_of(context.GetInput(2)) == indices;
    for (size_t i = 3; i < inputs; ++i) fits = fits && shape_of(context.GetInput(i)) == moved;
    if (!fits) {
      throw std::runtime_error(std::string("base must be [batch, tokens, width], indices and ") + slots +
                               " [batch, slots] and " + what + " [batch, slots, width]");
    }
    return {base[0], base[1], indices[1], base[2]};
  }
};

template <typename Op, typename Kernel>
struct RouteOpOf : CodaOp<Op, Kernel> {
  static constexpr const char* kName = "Route";
  static constexpr ONNXTensorElementDataType kInputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                                          ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL};
  static constexpr ONNXTensorElementDataType kOutputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
                                                           ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                                           ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL};

  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) {
    const Shape& scores = context.GetInputShape(0);
    if (scores.size() != 2) return Ort::Status(nullptr);
    const int64_t p = context.GetAttrInt("numerator"), q = context.GetAttrInt("denominator");
    const int64_t tokens = scores[1].IsInt() ? scores[1].AsInt() : 0;
    if (q < 1 || p < q || p > kMostTokens || tokens > kMostTokens) return Ort::Status(nullptr);  // the kernel refuses it
    Shape out{scores[0], scores[1]};
    if (scores[1].IsInt()) {
      out[1] = Dim(tokens < 0 ? tokens : slot_count(tokens, p, q));
    } else if (p != q) {
      // Layers of one r share one name, so that fusions see equal shapes; onnxruntime keeps pointers to names.
      static std::mutex mutex;
      static std::set<std::string> names;
      const std::lock_guard<std::mutex> lock(mutex);
      const auto name = std::string(scores[1].AsSym()) + "*" + std::to_string(q) + "/" + std::to_string(p);
      out[1] = Dim(names.insert(name).first->c_str());
    }
    for (size_t i = 0; i < std::size(kOutputs); ++i) {
      if (auto status = set_shape(context, i, out, kOutputs[i]); !status.IsOK()) return status;
    }
    return Ort::Status(nullptr);
  }
};

template <typename Op, typename Kernel, typename T>
struct TakeOpOf : CodaOp<Op, Kernel> {
  static constexpr const char* kName = "TakeTokens";
  static constexpr ONNXTensorElementDataType kInputs[] = {kElement<T>, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64};
  static constexpr ONNXTensorElementDataType kOutputs[] = {kElement<T>};

  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) {
    const Shape &x = context.GetInputShape(0), &indices = context.GetInputShape(1);
    if (x.size() != 3 || indices.size() != 2) return Ort::Status(nullptr);
    return set_shape(context, 0, Shape{indices[0], indices[1], x[2]}, kElement<T>);
  }
};

// An operator that changes some tokens of its first input, base.
template <typename Op, typename Kernel, typename T>
struct ChangeOpOf : CodaOp<Op, Kernel> {
  static constexpr ONNXTensorElementDataType kOutputs[] = {kElement<T>};

  // onnxruntime hands base over to be written into where nobody else reads it.
  ChangeOpOf() {
    OrtCustomOp::GetMayInplace = [](int** inputs, int** outputs) -> size_t {
      *inputs = new int[1]{0};
      *outputs = new int[1]{0};
      return 1;
    };
    OrtCustomOp::ReleaseMayInplace = [](int* inputs, int* outputs) {
      delete[] inputs;
      delete[] outputs;
    };
  }

  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) {
    const Shape& base = context.GetInputShape(0);
    return base.size() == 3 ? set_shape(context, 0, base, kElement<T>) : Ort::Status(nullptr);  // empty: not known
  }
};

template <typename Op, typename Kernel, Put kPut, typename T>
struct PutOpOf : ChangeOpOf<Op, Kernel, T> {
  static constexpr const char* kName = name_of(kPut);
  static constexpr ONNXTensorElementDataType kInputs[] = {
      kElement<T>, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, kElement<T>, kElement<T>};

  size_t GetInputTypeCount() const { return kPut == Put::kDifference ? 5 : 4; }
};

template <typename Op, typename Kernel, typename T>
struct SetOpOf : ChangeOpOf<Op, Kernel, T> {
  static constexpr const char* kName = "SetTokens";
  static constexpr ONNXTensorElementDataType kInputs[] = {kElement<T>, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
                                                          ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, kElement<T>};
};

}  // namespace coda
