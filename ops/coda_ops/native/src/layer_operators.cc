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
Ort::Status as_the_first(Ort::ShapeInferContext& context) {
  const Shape& x = context.GetInputShape(0);
  return x.empty() ? Ort::Status(nullptr) : set_shape(context, 0, x);
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
      const auto *a = x.GetTensorData<float>(), *b = y.GetTensorData<float>();
      const auto* shift = context.GetInput(2).GetTensorData<float>();
      const auto* scale = context.GetInput(3).GetTensorData<float>();
      const auto* bias = context.GetInput(4).GetTensorData<float>();
      auto* out = context.GetOutput(0, xs.data(), xs.size()).GetTensorMutableData<float>();
      parallel(raw, rows, 4 * width * static_cast<int64_t>(sizeof(float)), [&](int64_t row) {
        const int64_t at = row * width;
        add_norm(a + at, b + at, shift, scale, bias, epsilon_, width, out + at);
      });
      return nullptr;
    });
  }

 private:
  float epsilon_;
};

struct NormOp : CodaOp<NormOp, NormKernel> {
  static constexpr const char* kName = "AddNorm";
  static constexpr ONNXTensorElementDataType kInputs[] = {
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
  static constexpr ONNXTensorElementDataType kOutputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};

  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) { return as_the_first(context); }
};

// Inputs of an operator that adds an adapter or, without an activation, a map of low rank.
template <Activation kActivation>
struct AdapterInputs {
  static constexpr bool kLowRank = kActivation == Activation::kNone;  // which has no bias between its products
  static constexpr const char* kName =
      kLowRank ? "AddLowRank" : (kActivation == Activation::kSwish ? "AddSwishAdapter" : "AddAdapter");
  static constexpr size_t kUp = kLowRank ? 3 : 4, kCount = kUp + 2;

  explicit AdapterInputs(const Ort::KernelContext& context) {
    const auto numbers = [&](size_t i) { return context.GetInput(i).GetTensorData<float>(); };
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
};

template <Activation kActivation>
struct AdapterKernel {
  explicit AdapterKernel(const OrtKernelInfo*) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded(AdapterInputs<kActivation>::kName, [&]() -> OrtStatusPtr {
      constexpr int64_t kBlock = 16;  // rows of a task
      Ort::KernelContext context(raw);
      const AdapterInputs<kActivation> in(context);
      float* y = context.GetOutput(0, in.shape.data(), in.shape.size()).template GetTensorMutableData<float>();
      static thread_local AdapterWeights weights;
      const AdapterWeights& mine = weights;  // this thread's, for all that take part
      weights.set(in.down, in.down_bias, in.up, in.up_bias, in.width, in.bottleneck);
      parallel(raw, (in.rows + kBlock - 1) / kBlock, 64 << 10, [&](int64_t block) {
        thread_local AdapterScratch scratch;
        const int64_t at = block * kBlock * in.width, count = std::min(kBlock, in.rows - block * kBlock);
        add_adapter(mine, kActivation, in.residual + at, in.x + at, count, y + at, scratch);
      });
      return nullptr;
    });
  }
};

template <Activation kActivation>
struct AdapterOp : CodaOp<AdapterOp<kActivation>, AdapterKernel<kActivation>> {
  static constexpr const char* kName = AdapterInputs<kActivation>::kName;
  static constexpr ONNXTensorElementDataType kInputs[] = {
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
  static constexpr ONNXTensorElementDataType kOutputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};

  size_t GetInputTypeCount() const { return AdapterInputs<kActivation>::kCount; }

  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) { return as_the_first(context); }
};

}  // namespace

std::vector<const OrtCustomOp*> layer_operators() {
  static const NormOp norm;
  static const AdapterOp<Activation::kRelu> adapter;
  static const AdapterOp<Activation::kSwish> swish_adapter;
  static const AdapterOp<Activation::kNone> low_rank;
  static const GeluOp gelu;
  return {&norm, &adapter, &swish_adapter, &low_rank, &gelu};
}

}  // namespace coda
