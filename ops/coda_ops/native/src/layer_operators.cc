// Operators of a layer in float32, but for attention: adapters, norms and GELU.
#include <stdexcept>
#include <vector>

#include "adapter.h"
#include "gelu.h"
#include "norm.h"
#include "operators.h"

namespace coda {
namespace {

// Shapes of an operator whose first output is as its first input.
Ort::Status as_the_first(Ort::ShapeInferContext& context,
                         ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
  const Shape& x = context.GetInputShape(0);
  return x.empty() ? Ort::Status(nullptr) : set_shape(context, 0, x, type);
}

struct GeluKernel {
  explicit GeluKernel(const OrtKernelInfo*) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded("AddGelu", [&]() -> OrtStatusPtr {
      Ort::KernelContext context(raw);
      const auto x = context.GetInput(0), bias = context.GetInput(1);
      const auto shape = shape_of(x);
      if (shape.empty() || shape_of(bias) != std::vector<int64_t>{shape.back()}) {
        return invalid("AddGelu: x must be [..., width] and bias [width]");
      }
      const int64_t width = shape.back();
      const int64_t rows = rows_of(x, width);
      const auto *from = x.GetTensorData<float>(), *added = bias.GetTensorData<float>();
      auto* out = context.GetOutput(0, shape.data(), shape.size()).GetTensorMutableData<float>();
      parallel(raw, rows, 2 * width * static_cast<int64_t>(sizeof(float)), [&](int64_t row) {
        add_gelu(from + row * width, added, width, out + row * width);
      });
      return nullptr;
    });
  }
};

struct GeluOp : CodaOp<GeluOp, GeluKernel> {
  static constexpr const char* kName = "AddGelu";
  static constexpr ONNXTensorElementDataType kInputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                                          ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
  static constexpr ONNXTensorElementDataType kOutputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};

  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) { return as_the_first(context); }
};

template <typename T>
struct NormKernel {
  explicit NormKernel(const OrtKernelInfo* info) : epsilon_(epsilon_of(info)) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded("AddNorm", [&]() -> OrtStatusPtr {
      Ort::KernelContext context(raw);
      const auto x = context.GetInput(0), y = context.GetInput(1);
      const auto xs = shape_of(x);
      const std::vector<int64_t> last{xs.empty() ? 0 : xs.back()};
      if (xs.empty() || shape_of(y) != xs || shape_of(context.GetInput(2)) != last ||
          shape_of(context.GetInput(3)) != last || shape_of(context.GetInput(4)) != last) {
        return invalid("AddNorm: x and y must be [..., width], shift, scale and bias [width]");
      }
      const int64_t width = last[0];
      const int64_t rows = rows_of(x, width);
      std::vector<float> wide[6];
      const auto numbers = [&](size_t i, int64_t count) {
        return widened(context.GetInput(i).template GetTensorData<T>(), count, wide[i]);
      };
      const float *a = numbers(0, rows * width), *b = numbers(1, rows * width), *shift = numbers(2, width),
                  *scale = numbers(3, width), *bias = numbers(4, width);
      auto* result = context.GetOutput(0, xs.data(), xs.size()).template GetTensorMutableData<T>();
      float* out = float_output(result, rows * width, wide[5]);
      parallel(raw, rows, 4 * width * static_cast<int64_t>(sizeof(float)), [&](int64_t row) {
        const int64_t at = row * width;
        add_norm(a + at, b + at, shift, scale, bias, epsilon_, width, out + at);
      });
      narrow(wide[5], result);
      return nullptr;
    });
  }

 private:
  float epsilon_;
};

template <typename T>
struct NormOp : CodaOp<NormOp<T>, NormKernel<T>> {
  static constexpr const char* kName = "AddNorm";
  static constexpr ONNXTensorElementDataType kInputs[] = {kElement<T>, kElement<T>, kElement<T>, kElement<T>, kElement<T>};
  static constexpr ONNXTensorElementDataType kOutputs[] = {kElement<T>};

  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) { return as_the_first(context, kElement<T>); }
};

// Inputs of an operator that adds an adapter or, without an activation, a map of low rank; numbers of either type as floats.
template <Activation kActivation, typename T>
struct AdapterInputs {
  static constexpr bool kLowRank = kActivation == Activation::kNone;  // which has no bias between its products
  static constexpr const char* kName =
      kLowRank ? "AddLowRank" : (kActivation == Activation::kSwish ? "AddSwishAdapter" : "AddAdapter");
  static constexpr size_t kUp = kLowRank ? 3 : 4, kCount = kUp + 2;

  explicit AdapterInputs(const Ort::KernelContext& context) {
    const auto numbers = [&](size_t i) {
      const auto input = context.GetInput(i);
      const auto count = static_cast<int64_t>(input.GetTensorTypeAndShapeInfo().GetElementCount());
      return widened(input.template GetTensorData<T>(), count, wide_[i]);
    };
    const auto is = [&](size_t i, const std::vector<int64_t>& wanted) { return shape_of(context.GetInput(i)) == wanted; };
    const auto ds = shape_of(context.GetInput(2));
    shape = shape_of(context.GetInput(1));
    if (shape.empty() || !is(0, shape) || ds.size() != 2 || shape.back() != ds[0] || !is(kUp, {ds[1], ds[0]}) ||
        !is(kUp + 1, {ds[0]}) || (!kLowRank && !is(3, {ds[1]}))) {
      throw std::runtime_error("residual and x must be [..., width], down [width, bottleneck], up [bottleneck, width], and "
                               "biases as wide as what they are added to");
    }
    width = ds[0], bottleneck = ds[1], rows = rows_of(context.GetInput(1), width);
    residual = numbers(0), x = numbers(1), down = numbers(2), up = numbers(kUp), up_bias = numbers(kUp + 1);
    if (!kLowRank) down_bias = numbers(3);
  }

  const float *residual, *x, *down, *down_bias = nullptr, *up, *up_bias;
  std::vector<int64_t> shape;  // of residual, x and y
  int64_t width, bottleneck, rows;

 private:
  std::vector<float> wide_[kCount];
};

template <Activation kActivation, typename T>
struct AdapterKernel {
  explicit AdapterKernel(const OrtKernelInfo*) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded(AdapterInputs<kActivation, T>::kName, [&]() -> OrtStatusPtr {
      constexpr int64_t kBlock = 16;  // rows of a task
      Ort::KernelContext context(raw);
      const AdapterInputs<kActivation, T> in(context);
      T* result = context.GetOutput(0, in.shape.data(), in.shape.size()).template GetTensorMutableData<T>();
      std::vector<float> wide;
      float* y = float_output(result, in.rows * in.width, wide);
      static thread_local AdapterWeights weights;
      const AdapterWeights& mine = weights;  // this thread's, for all that take part
      weights.set(in.down, in.down_bias, in.up, in.up_bias, in.width, in.bottleneck);
      parallel(raw, (in.rows + kBlock - 1) / kBlock, 64 << 10, [&](int64_t block) {
        thread_local AdapterScratch scratch;
        const int64_t at = block * kBlock * in.width, count = std::min(kBlock, in.rows - block * kBlock);
        add_adapter(mine, kActivation, in.residual + at, in.x + at, count, y + at, scratch);
      });
      weights.release();
      narrow(wide, result);
      return nullptr;
    });
  }
};

template <Activation kActivation, typename T>
struct AdapterOp : CodaOp<AdapterOp<kActivation, T>, AdapterKernel<kActivation, T>> {
  static constexpr const char* kName = AdapterInputs<kActivation, T>::kName;
  static constexpr ONNXTensorElementDataType kOutputs[] = {kElement<T>};

  size_t GetInputTypeCount() const { return AdapterInputs<kActivation, T>::kCount; }
  ONNXTensorElementDataType GetInputType(size_t) const { return kElement<T>; }

  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) { return as_the_first(context, kElement<T>); }
};

template <typename T>
struct LayerOperators {
  NormOp<T> norm;
  AdapterOp<Activation::kRelu, T> adapter;
  AdapterOp<Activation::kSwish, T> swish_adapter;
  AdapterOp<Activation::kNone, T> low_rank;

  std::vector<const OrtCustomOp*> all() const { return {&norm, &adapter, &swish_adapter, &low_rank}; }
};

}  // namespace

std::vector<const OrtCustomOp*> layer_operators() {
  static const LayerOperators<float> floats;
  static const LayerOperators<Ort::Float16_t> halves;
  static const GeluOp gelu;
  auto all = floats.all();
  const auto more = halves.all();
  all.insert(all.end(), more.begin(), more.end());
  all.push_back(&gelu);
  return all;
}

}  // namespace coda
