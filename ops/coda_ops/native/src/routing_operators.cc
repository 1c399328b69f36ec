// Operators that choose tokens and move them.
#include <cstring>
#include <mutex>
#include <set>

#include "operators.h"
#include "route.h"
#include "tokens.h"

namespace coda {
namespace {

struct RouteKernel {
  explicit RouteKernel(const OrtKernelInfo* raw) {
    Ort::ConstKernelInfo info(raw);
    p_ = info.GetAttribute<int64_t>("numerator");
    q_ = info.GetAttribute<int64_t>("denominator");
    const auto iterations = info.GetAttribute<int64_t>("iterations");
    if (p_ < q_ || q_ < 1 || iterations < 1) throw std::runtime_error("r must be at least 1, iterations too");
    epsilons_ = epsilons(iterations, info.GetAttribute<float>("epsilon_start"),
                         info.GetAttribute<float>("epsilon_decay"), info.GetAttribute<float>("epsilon_final"));
  }

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded("Route", [&]() -> OrtStatusPtr {
      Ort::KernelContext context(raw);
      const auto scores = context.GetInput(0), mask = context.GetInput(1);
      const auto shape = shape_of(scores);
      if (shape.size() != 2 || shape_of(mask) != shape) {
        return invalid("Route: scores and mask must both be [batch, tokens]");
      }
      const int64_t batch = shape[0], tokens = shape[1], slots = slot_count(tokens, p_, q_);
      const int64_t out[] = {batch, slots};
      auto* indices = context.GetOutput(0, out, 2).GetTensorMutableData<int64_t>();
      auto* gates = context.GetOutput(1, out, 2).GetTensorMutableData<float>();
      auto* used = context.GetOutput(2, out, 2).GetTensorMutableData<bool>();
      const auto* s = scores.GetTensorData<float>();
      const auto* m = mask.GetTensorData<bool>();
      parallel(raw, batch, tokens * 20 * 16, [&](int64_t row) {  // every iteration reads all scores
        thread_local RouteScratch scratch;
        route_row(s + row * tokens, m + row * tokens, tokens, slots, p_, q_, epsilons_, scratch,
                  indices + row * slots, gates + row * slots, used + row * slots);
      });
      return nullptr;
    });
  }

 private:
  int64_t p_, q_;
  std::vector<double> epsilons_;
};

struct RouteOp : CodaOp<RouteOp, RouteKernel> {
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
    Shape out{scores[0], scores[1]};
    if (scores[1].IsInt()) {
      const int64_t tokens = scores[1].AsInt();
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

// Whether every index lies in [0, tokens).
bool inside(const int64_t* indices, int64_t count, int64_t tokens) {
  return std::all_of(indices, indices + count, [tokens](int64_t i) { return i >= 0 && i < tokens; });
}

struct TakeKernel {
  explicit TakeKernel(const OrtKernelInfo*) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded("TakeTokens", [&]() -> OrtStatusPtr {
      Ort::KernelContext context(raw);
      const auto x = context.GetInput(0), indices = context.GetInput(1);
      const auto xs = shape_of(x), is = shape_of(indices);
      if (xs.size() != 3 || is.size() != 2 || is[0] != xs[0]) {
        return invalid("TakeTokens: x must be [batch, tokens, width] and indices [batch, slots]");
      }
      const int64_t tokens = xs[1], slots = is[1], width = xs[2];
      const auto* at = indices.GetTensorData<int64_t>();
      if (!inside(at, is[0] * slots, tokens)) return invalid("TakeTokens: an index lies outside of the sequence");
      const int64_t out[] = {is[0], slots, width};
      auto* taken = context.GetOutput(0, out, 3).GetTensorMutableData<float>();
      const auto* from = x.GetTensorData<float>();
      const int64_t bytes = width * static_cast<int64_t>(sizeof(float));
      parallel(raw, is[0] * slots, bytes, [&](int64_t slot) {
        std::memcpy(taken + slot * width, from + (slot / slots * tokens + at[slot]) * width, bytes);
      });
      return nullptr;
    });
  }
};

struct TakeOp : CodaOp<TakeOp, TakeKernel> {
  static constexpr const char* kName = "TakeTokens";
  static constexpr ONNXTensorElementDataType kInputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                                          ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64};
  static constexpr ONNXTensorElementDataType kOutputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};

  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) {
    const Shape &x = context.GetInputShape(0), &indices = context.GetInputShape(1);
    if (x.size() != 3 || indices.size() != 2) return Ort::Status(nullptr);
    return set_shape(context, 0, Shape{indices[0], indices[1], x[2]});
  }
};

// What is put back: updates, or what tokens have become and were.
template <bool kDifference>
struct PutKernel {
  explicit PutKernel(const OrtKernelInfo*) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    constexpr const char* kName = kDifference ? "PutDifference" : "PutTokens";
    return guarded(kName, [&]() -> OrtStatusPtr {
      Ort::KernelContext context(raw);
      const auto base = context.GetInput(0), indices = context.GetInput(1);
      const auto gates = context.GetInput(2), update = context.GetInput(3);
      const auto bs = shape_of(base), is = shape_of(indices);
      const std::vector<int64_t> us{is.empty() ? 0 : is[0], is.size() < 2 ? 0 : is[1], bs.size() < 3 ? 0 : bs[2]};
      if (bs.size() != 3 || is.size() != 2 || is[0] != bs[0] || shape_of(gates) != is || shape_of(update) != us ||
          (kDifference && shape_of(context.GetInput(4)) != us)) {
        return invalid(std::string(kName) + ": base must be [batch, tokens, width], indices and gates [batch, slots] and " +
                       (kDifference ? "what is put back" : "update") + " [batch, slots, width]");
      }
      const int64_t tokens = bs[1], slots = is[1], width = bs[2];
      const auto* at = indices.GetTensorData<int64_t>();
      if (!inside(at, is[0] * slots, tokens)) {
        return invalid(std::string(kName) + ": an index lies outside of the sequence");
      }
      const auto* old = base.GetTensorData<float>();
      auto* out = context.GetOutput(0, bs.data(), bs.size()).GetTensorMutableData<float>();
      const auto* gate = gates.GetTensorData<float>();
      const auto* add = update.GetTensorData<float>();
      const float* less = nullptr;
      if constexpr (kDifference) less = context.GetInput(4).GetTensorData<float>();
      const int64_t bytes = width * static_cast<int64_t>(sizeof(float));
      if (out != old) {  // onnxruntime hands over base itself where nobody else reads it
        parallel(raw, bs[0] * tokens, bytes, [&](int64_t row) {
          std::memcpy(out + row * width, old + row * width, bytes);
        });
      }
      parallel(raw, is[0] * slots, 2 * bytes, [&](int64_t slot) {  // indices of a row are distinct: no two collide
        float* row = out + (slot / slots * tokens + at[slot]) * width;
        if constexpr (kDifference) {
          add_gated_difference(row, add + slot * width, less + slot * width, gate[slot], width);
        } else {
          add_gated(row, add + slot * width, gate[slot], width);
        }
      });
      return nullptr;
    });
  }
};

template <bool kDifference>
struct PutOp : CodaOp<PutOp<kDifference>, PutKernel<kDifference>> {
  static constexpr const char* kName = kDifference ? "PutDifference" : "PutTokens";
  static constexpr ONNXTensorElementDataType kInputs[] = {
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
  static constexpr ONNXTensorElementDataType kOutputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};

  size_t GetInputTypeCount() const { return kDifference ? 5 : 4; }

  PutOp() {
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
    return base.size() == 3 ? set_shape(context, 0, base) : Ort::Status(nullptr);  // empty: not known
  }
};

// Positions in use, text by text.
std::vector<int64_t> places(const Ort::ConstValue& used) {
  const int64_t count = static_cast<int64_t>(used.GetTensorTypeAndShapeInfo().GetElementCount());
  const bool* flags = used.GetTensorData<bool>();
  std::vector<int64_t> found;
  found.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    if (flags[i]) found.push_back(i);
  }
  return found;
}

struct PackKernel {
  explicit PackKernel(const OrtKernelInfo*) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded("PackTokens", [&]() -> OrtStatusPtr {
      Ort::KernelContext context(raw);
      const auto x = context.GetInput(0), used = context.GetInput(1);
      const auto xs = shape_of(x), us = shape_of(used);
      if (xs.size() != 3 || us != std::vector<int64_t>{xs[0], xs[1]}) {
        return invalid("PackTokens: x must be [batch, tokens, width] and used [batch, tokens]");
      }
      const auto from = places(used);
      const int64_t rows = static_cast<int64_t>(from.size()), width = xs[2];
      const int64_t out[] = {rows, width};
      auto* packed = context.GetOutput(0, out, 2).GetTensorMutableData<float>();
      const auto* data = x.GetTensorData<float>();
      const int64_t bytes = width * static_cast<int64_t>(sizeof(float));
      parallel(raw, rows, bytes, [&](int64_t row) {
        std::memcpy(packed + row * width, data + from[row] * width, bytes);
      });
      return nullptr;
    });
  }
};

struct PackOp : CodaOp<PackOp, PackKernel> {
  static constexpr const char* kName = "PackTokens";
  static constexpr ONNXTensorElementDataType kInputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                                          ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL};
  static constexpr ONNXTensorElementDataType kOutputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
};

struct UnpackKernel {
  explicit UnpackKernel(const OrtKernelInfo*) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded("UnpackTokens", [&]() -> OrtStatusPtr {
      Ort::KernelContext context(raw);
      const auto rows = context.GetInput(0), used = context.GetInput(1);
      const auto rs = shape_of(rows), us = shape_of(used);
      if (rs.size() != 2 || us.size() != 2) {
        return invalid("UnpackTokens: rows must be [rows, width] and used [batch, tokens]");
      }
      const auto to = places(used);
      if (rs[0] != static_cast<int64_t>(to.size())) {
        return invalid("UnpackTokens: there must be as many rows as tokens in use");
      }
      const int64_t width = rs[1], count = us[0] * us[1];
      const int64_t out[] = {us[0], us[1], width};
      auto* x = context.GetOutput(0, out, 3).GetTensorMutableData<float>();
      const auto* from = rows.GetTensorData<float>();
      const int64_t bytes = width * static_cast<int64_t>(sizeof(float));
      if (rs[0] != count) std::memset(x, 0, count * bytes);
      parallel(raw, rs[0], bytes, [&](int64_t row) {
        std::memcpy(x + to[row] * width, from + row * width, bytes);
      });
      return nullptr;
    });
  }
};

struct UnpackOp : CodaOp<UnpackOp, UnpackKernel> {
  static constexpr const char* kName = "UnpackTokens";
  static constexpr ONNXTensorElementDataType kInputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                                          ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL};
  static constexpr ONNXTensorElementDataType kOutputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};

  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) {
    const Shape &rows = context.GetInputShape(0), &used = context.GetInputShape(1);
    if (rows.size() != 2 || used.size() != 2) return Ort::Status(nullptr);
    return set_shape(context, 0, Shape{used[0], used[1], rows[1]});
  }
};

}  // namespace

std::vector<const OrtCustomOp*> routing_operators() {
  static const RouteOp route;
  static const TakeOp take;
  static const PutOp<false> put;
  static const PutOp<true> put_difference;
  static const PackOp pack;
  static const UnpackOp unpack;
  return {&route, &take, &put, &put_difference, &pack, &unpack};
}

}  // namespace coda
