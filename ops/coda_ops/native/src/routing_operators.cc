// Operators that choose tokens and move them.
#include <cstring>

#include "route.h"
#include "routing.h"
#include "scratch.h"
#include "tokens.h"

namespace coda {
namespace {

struct RouteKernel {
  explicit RouteKernel(const OrtKernelInfo* info) : attributes_(info) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded("Route", [&]() -> OrtStatusPtr {
      Ort::KernelContext context(raw);
      const RouteSizes n(context, attributes_);
      const int64_t out[] = {n.batch, n.slots};
      auto* indices = context.GetOutput(0, out, 2).GetTensorMutableData<int64_t>();
      auto* gates = context.GetOutput(1, out, 2).GetTensorMutableData<float>();
      auto* used = context.GetOutput(2, out, 2).GetTensorMutableData<bool>();
      const auto* scores = context.GetInput(0).GetTensorData<float>();
      const auto* mask = context.GetInput(1).GetTensorData<bool>();
      // Every iteration reads all scores.
      parallel(raw, n.batch, n.tokens * 20 * 16, [&](int64_t row) {
        thread_local RouteScratch scratch;
        route_row(scores + row * n.tokens, mask + row * n.tokens, n.tokens, n.slots, attributes_.numerator,
                  attributes_.denominator, attributes_.epsilons, scratch, indices + row * n.slots, gates + row * n.slots,
                  used + row * n.slots);
      });
      return nullptr;
    });
  }

 private:
  RouteAttributes attributes_;
};

struct RouteOp : RouteOpOf<RouteOp, RouteKernel> {};

// Input 1, positions in [0, tokens).
const int64_t* checked_indices(const Ort::KernelContext& context, const TokenSizes& n) {
  const auto* indices = context.GetInput(1).GetTensorData<int64_t>();
  if (!std::all_of(indices, indices + n.batch * n.slots, [&](int64_t i) { return i >= 0 && i < n.tokens; })) {
    throw std::runtime_error("an index lies outside of the sequence");
  }
  return indices;
}

template <typename T>
struct TakeKernel {
  explicit TakeKernel(const OrtKernelInfo*) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded("TakeTokens", [&]() -> OrtStatusPtr {
      Ort::KernelContext context(raw);
      const auto n = TokenSizes::of_take(context);
      const auto* at = checked_indices(context, n);
      const int64_t out[] = {n.batch, n.slots, n.width};
      auto* taken = context.GetOutput(0, out, 3).GetTensorMutableData<T>();
      const auto* from = context.GetInput(0).GetTensorData<T>();
      const int64_t bytes = n.width * static_cast<int64_t>(sizeof(T));
      parallel(raw, n.batch * n.slots, bytes, [&](int64_t slot) {
        std::memcpy(taken + slot * n.width, from + (slot / n.slots * n.tokens + at[slot]) * n.width, bytes);
      });
      return nullptr;
    });
  }
};

template <typename T>
struct TakeOp : TakeOpOf<TakeOp<T>, TakeKernel<T>, T> {};

// The output of an operator that changes tokens of its base, holding what base holds: base itself where onnxruntime hands it
// over, as nobody else reads it.
template <typename T>
T* output_like_base(OrtKernelContext* raw, const TokenSizes& n) {
  Ort::KernelContext context(raw);
  const auto* base = context.GetInput(0).GetTensorData<T>();
  const int64_t shape[] = {n.batch, n.tokens, n.width};
  auto* out = context.GetOutput(0, shape, 3).GetTensorMutableData<T>();
  if (out == base) return out;
  const int64_t bytes = n.width * static_cast<int64_t>(sizeof(T));
  parallel(raw, n.batch * n.tokens, bytes,
           [&](int64_t row) { std::memcpy(out + row * n.width, base + row * n.width, bytes); });
  return out;
}

// row += gate * update, or gate * (update - before) where there is what tokens were. [width] each
void put(float* row, const float* update, const float* before, float gate, int64_t width) {
  if (before == nullptr) {
    add_gated(row, update, gate, width);
  } else {
    add_gated_difference(row, update, before, gate, width);
  }
}

template <Put kPut, typename T>
struct PutKernel {
  explicit PutKernel(const OrtKernelInfo*) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded(name_of(kPut), [&]() -> OrtStatusPtr {
      Ort::KernelContext context(raw);
      const auto n = TokenSizes::of_put(context, kPut);
      const auto* at = checked_indices(context, n);
      const auto* gate = context.GetInput(2).GetTensorData<float>();
      const auto* add = context.GetInput(3).GetTensorData<T>();
      const T* less = nullptr;
      if constexpr (kPut == Put::kDifference) less = context.GetInput(4).GetTensorData<T>();
      T* out = output_like_base<T>(raw, n);
      // Indices of a row are distinct: no two slots collide.
      parallel(raw, n.batch * n.slots, 2 * n.width * static_cast<int64_t>(sizeof(T)), [&](int64_t slot) {
        T* row = out + (slot / n.slots * n.tokens + at[slot]) * n.width;
        const T* now = add + slot * n.width;
        const T* before = kPut == Put::kBlend ? row : less == nullptr ? nullptr : less + slot * n.width;
        if constexpr (std::is_same_v<T, float>) {
          put(row, now, before, gate[slot], n.width);
        } else if (gate[slot] > 0.0f) {
          thread_local std::vector<float> sums, updates, befores;
          widened(row, n.width, sums);
          const float* was = before == nullptr ? nullptr : widened(before, n.width, befores);
          put(sums.data(), widened(now, n.width, updates), was, gate[slot], n.width);
          narrow(sums, row);
          keep_small(sums, updates, befores);
        }
      });
      return nullptr;
    });
  }
};

template <Put kPut, typename T>
struct PutOp : PutOpOf<PutOp<kPut, T>, PutKernel<kPut, T>, kPut, T> {};

template <typename T>
struct SetKernel {
  explicit SetKernel(const OrtKernelInfo*) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded("SetTokens", [&]() -> OrtStatusPtr {
      Ort::KernelContext context(raw);
      const auto n = TokenSizes::of_set(context);
      const auto* at = checked_indices(context, n);
      const auto* used = context.GetInput(2).GetTensorData<bool>();
      const auto* rows = context.GetInput(3).GetTensorData<T>();
      T* out = output_like_base<T>(raw, n);
      const int64_t bytes = n.width * static_cast<int64_t>(sizeof(T));
      parallel(raw, n.batch * n.slots, bytes, [&](int64_t slot) {
        if (!used[slot]) return;
        std::memcpy(out + (slot / n.slots * n.tokens + at[slot]) * n.width, rows + slot * n.width, bytes);
      });
      return nullptr;
    });
  }
};

template <typename T>
struct SetOp : SetOpOf<SetOp<T>, SetKernel<T>, T> {};

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

template <typename T>
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
      auto* packed = context.GetOutput(0, out, 2).GetTensorMutableData<T>();
      const auto* data = x.GetTensorData<T>();
      const int64_t bytes = width * static_cast<int64_t>(sizeof(T));
      parallel(raw, rows, bytes, [&](int64_t row) {
        std::memcpy(packed + row * width, data + from[row] * width, bytes);
      });
      return nullptr;
    });
  }
};

template <typename T>
struct PackOp : CodaOp<PackOp<T>, PackKernel<T>> {
  static constexpr const char* kName = "PackTokens";
  static constexpr ONNXTensorElementDataType kInputs[] = {kElement<T>, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL};
  static constexpr ONNXTensorElementDataType kOutputs[] = {kElement<T>};
};

template <typename T>
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
      auto* x = context.GetOutput(0, out, 3).GetTensorMutableData<T>();
      const auto* from = rows.GetTensorData<T>();
      const int64_t bytes = width * static_cast<int64_t>(sizeof(T));
      if (rs[0] != count) std::memset(x, 0, count * bytes);
      parallel(raw, rs[0], bytes, [&](int64_t row) {
        std::memcpy(x + to[row] * width, from + row * width, bytes);
      });
      return nullptr;
    });
  }
};

template <typename T>
struct UnpackOp : CodaOp<UnpackOp<T>, UnpackKernel<T>> {
  static constexpr const char* kName = "UnpackTokens";
  static constexpr ONNXTensorElementDataType kInputs[] = {kElement<T>, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL};
  static constexpr ONNXTensorElementDataType kOutputs[] = {kElement<T>};

  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) {
    const Shape &rows = context.GetInputShape(0), &used = context.GetInputShape(1);
    if (rows.size() != 2 || used.size() != 2) return Ort::Status(nullptr);
    return set_shape(context, 0, Shape{used[0], used[1], rows[1]}, kElement<T>);
  }
};

// Operators that move tokens of one type; onnxruntime takes those of the other for further types of the same operators.
template <typename T>
struct TokenOperators {
  TakeOp<T> take;
  PutOp<Put::kUpdate, T> put;
  PutOp<Put::kDifference, T> put_difference;
  PutOp<Put::kBlend, T> blend;
  SetOp<T> set;
  PackOp<T> pack;
  UnpackOp<T> unpack;

  std::vector<const OrtCustomOp*> all() const { return {&take, &put, &put_difference, &blend, &set, &pack, &unpack}; }
};

}  // namespace

std::vector<const OrtCustomOp*> routing_operators() {
  static const RouteOp route;
  static const TokenOperators<float> floats;
  static const TokenOperators<Ort::Float16_t> halves;
  auto all = floats.all(), more = halves.all();
  all.push_back(&route);
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

}  // namespace coda
