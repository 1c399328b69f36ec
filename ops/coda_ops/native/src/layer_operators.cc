// Operators of a layer in float32: attention, adapters, norms and GELU.
#include <stdexcept>
#include <vector>

#include "adapter.h"
#include "attention.h"
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
  explicit NormKernel(const OrtKernelInfo* raw) : epsilon_(Ort::ConstKernelInfo(raw).GetAttribute<float>("epsilon")) {}

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

// Whether bottlenecks fit: down and up are [inputs, outputs].
bool is_bottleneck(const std::vector<int64_t>& down, const std::vector<int64_t>& down_bias,
                   const std::vector<int64_t>& up, const std::vector<int64_t>& up_bias) {
  return down.size() == 2 && up == std::vector<int64_t>{down[1], down[0]} &&
         down_bias == std::vector<int64_t>{down[1]} && up_bias == std::vector<int64_t>{down[0]};
}

template <Activation kActivation>
struct AdapterKernel {
  explicit AdapterKernel(const OrtKernelInfo*) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded("AddAdapter", [&]() -> OrtStatusPtr {
      constexpr int64_t kBlock = 16;  // rows of a task
      Ort::KernelContext context(raw);
      const auto residual = context.GetInput(0), x = context.GetInput(1), down = context.GetInput(2);
      const auto down_bias = context.GetInput(3), up = context.GetInput(4), up_bias = context.GetInput(5);
      const auto shape = shape_of(x), ds = shape_of(down);
      if (shape.empty() || shape_of(residual) != shape ||
          !is_bottleneck(ds, shape_of(down_bias), shape_of(up), shape_of(up_bias)) || shape.back() != ds[0]) {
        return invalid("AddAdapter: residual and x must be [..., width], down [width, bottleneck], up [bottleneck, width], "
                       "and biases as wide as what they are added to");
      }
      const int64_t width = ds[0];
      const int64_t rows = rows_of(x, width);
      const auto *added = residual.GetTensorData<float>(), *from = x.GetTensorData<float>();
      auto* y = context.GetOutput(0, shape.data(), shape.size()).GetTensorMutableData<float>();
      static thread_local AdapterWeights weights;
      const AdapterWeights& mine = weights;  // this thread's, for all that take part
      weights.set(down.GetTensorData<float>(), down_bias.GetTensorData<float>(), up.GetTensorData<float>(),
                  up_bias.GetTensorData<float>(), width, ds[1]);
      parallel(raw, (rows + kBlock - 1) / kBlock, 64 << 10, [&](int64_t block) {
        thread_local AdapterScratch scratch;
        const int64_t at = block * kBlock * width, count = std::min(kBlock, rows - block * kBlock);
        add_adapter(mine, kActivation, added + at, from + at, count, y + at, scratch);
      });
      return nullptr;
    });
  }
};

template <Activation kActivation>
struct AdapterOp : CodaOp<AdapterOp<kActivation>, AdapterKernel<kActivation>> {
  static constexpr const char* kName = kActivation == Activation::kRelu ? "AddAdapter" : "AddSwishAdapter";
  static constexpr ONNXTensorElementDataType kInputs[] = {
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
  static constexpr ONNXTensorElementDataType kOutputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};

  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) { return as_the_first(context); }
};

struct AttentionKernel {
  explicit AttentionKernel(const OrtKernelInfo* raw) {
    const Ort::ConstKernelInfo info(raw);
    heads_ = info.GetAttribute<int64_t>("num_heads");
    scale_ = info.GetAttribute<float>("scale");
    if (heads_ < 1) throw std::runtime_error("there must be a head");
  }

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded("SelfAttention", [&]() -> OrtStatusPtr {
      constexpr int64_t kBlock = 128;  // queries that share a head's keys, as they are laid out for them
      Ort::KernelContext context(raw);
      const auto qkv = context.GetInput(0), bias = context.GetInput(1);
      auto shape = shape_of(qkv);
      const bool fits = shape.size() == 3 && shape[2] % (3 * heads_) == 0;
      if (!fits || shape_of(bias) != std::vector<int64_t>{shape[0], 1, 1, shape[1]}) {
        return invalid("SelfAttention: qkv must be [batch, tokens, 3 * width], its heads of one width, and bias [batch, "
                       "1, 1, tokens]");
      }
      const int64_t batch = shape[0], tokens = shape[1], width = shape[2] / 3, each = width / heads_;
      shape[2] = width;
      auto* out = context.GetOutput(0, shape.data(), shape.size()).GetTensorMutableData<float>();
      const auto *x = qkv.GetTensorData<float>(), *b = bias.GetTensorData<float>();
      const int64_t blocks = (tokens + kBlock - 1) / kBlock;
      const int64_t work = std::min(kBlock, tokens) * tokens * each / 2;  // as long as walking so many bytes takes
      parallel(raw, batch * heads_ * blocks, work, [&](int64_t task) {
        thread_local AttentionScratch scratch;
        const int64_t text = task / (heads_ * blocks), head = task / blocks % heads_, first = task % blocks * kBlock;
        const float* query = x + text * tokens * 3 * width + head * each;
        attend({query, query + width, query + 2 * width, 3 * width, b + text * tokens, scale_, tokens, each,
                out + text * tokens * width + head * each, width},
               first, std::min(tokens, first + kBlock), scratch);
      });
      return nullptr;
    });
  }

 private:
  int64_t heads_;
  float scale_;
};

struct AttentionOp : CodaOp<AttentionOp, AttentionKernel> {
  static constexpr const char* kName = "SelfAttention";
  static constexpr ONNXTensorElementDataType kInputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                                          ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
  static constexpr ONNXTensorElementDataType kOutputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};

  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) {
    Shape out = context.GetInputShape(0);
    if (out.size() != 3 || !out[2].IsInt() || out[2].AsInt() < 0) return Ort::Status(nullptr);
    out[2] = Dim(out[2].AsInt() / 3);
    return set_shape(context, 0, out);
  }
};

}  // namespace

std::vector<const OrtCustomOp*> layer_operators() {
  static const NormOp norm;
  static const AttentionOp attention;
  static const AdapterOp<Activation::kRelu> adapter;
  static const AdapterOp<Activation::kSwish> swish_adapter;
  static const GeluOp gelu;
  return {&norm, &attention, &adapter, &swish_adapter, &gelu};
}

}  // namespace coda
