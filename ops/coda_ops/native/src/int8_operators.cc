// Operators that multiply in eight bits.
#include <memory>
#include <stdexcept>

#include "gelu.h"
#include "int8_linear.h"
#include "operators.h"
#include "scratch.h"
#include "tokens.h"

namespace coda {
namespace {

// A constant input of a node.
Ort::ConstValue constant(const Ort::ConstKernelInfo& info, size_t index) {
  int is_constant = 0;
  const auto value = info.GetTensorConstantInput(index, &is_constant);
  if (!is_constant) throw std::runtime_error("weight, scale and bias must be constants");
  return value;
}

constexpr int64_t kMostInputs = 1 << 17;  // of which products of bytes add up to 32 bits

// The quantised weight of a linear layer, from the constant inputs of a node that begin at one of them.
std::unique_ptr<Int8Weights> int8_weights(const Ort::ConstKernelInfo& info, size_t first) {
  const auto weight = constant(info, first), scale = constant(info, first + 1), bias = constant(info, first + 2);
  const auto shape = shape_of(weight);
  if (shape.size() != 2 || shape_of(scale) != std::vector<int64_t>{shape[1]} ||
      shape_of(bias) != std::vector<int64_t>{shape[1]}) {
    throw std::runtime_error("weight must be [inputs, outputs], scale and bias [outputs]");
  }
  if (shape[0] < 1 || shape[0] > kMostInputs || shape[1] < 1) {
    throw std::runtime_error("weight must have 1 to 2^17 inputs, and outputs");
  }
  return std::make_unique<Int8Weights>(weight.GetTensorData<uint8_t>(), scale.GetTensorData<float>(),
                                       bias.GetTensorData<float>(), shape[0], shape[1]);
}

template <bool kGelu>
struct Int8LinearKernel {
  static constexpr const char* kName = kGelu ? "Int8LinearGelu" : "Int8Linear";

  explicit Int8LinearKernel(const OrtKernelInfo* raw) : weights_(int8_weights(Ort::ConstKernelInfo(raw), 1)) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded(kName, [&]() -> OrtStatusPtr {
      constexpr int64_t kBlock = 256;  // rows that share one walk through the weights
      constexpr int64_t kTasks = 16;   // enough for every thread to stay busy to the end
      constexpr int64_t kUnit = 4;     // panels that stay together
      Ort::KernelContext context(raw);
      const auto x = context.GetInput(0);
      auto shape = shape_of(x);
      const int64_t inputs = weights_->inputs(), outputs = weights_->outputs();
      if (shape.empty() || shape.back() != inputs) throw std::runtime_error("x must be [..., inputs]");
      const int64_t rows = rows_of(x, inputs);
      shape.back() = outputs;
      auto* y = context.GetOutput(0, shape.data(), shape.size()).GetTensorMutableData<float>();
      const auto* from = x.GetTensorData<float>();
      static thread_local Int8Rows mine;
      Int8Rows& prepared = mine;  // this thread's, for all that take part
      weights_->reserve(rows, prepared);
      parallel(raw, rows, inputs * static_cast<int64_t>(sizeof(float)),
               [&](int64_t row) { weights_->quantize(from, row, row + 1, prepared); });
      // Shared by outputs first, so that weights are read once, down to what is still worth a thread's while.
      const int64_t blocks = (rows + kBlock - 1) / kBlock, units = (weights_->panels() + kUnit - 1) / kUnit;
      const int64_t worth = std::max<int64_t>(1, std::min(rows, kBlock) * inputs * outputs >> 20);
      const int64_t groups = std::max<int64_t>(1, std::min({kTasks / std::max<int64_t>(1, blocks), worth, units}));
      parallel(raw, blocks * groups, 64 << 10, [&](int64_t task) {
        const int64_t row = task / groups * kBlock, last = std::min(rows, row + kBlock), group = task % groups;
        const int64_t first_panel = group * units / groups * kUnit;
        const int64_t last_panel = std::min(weights_->panels(), (group + 1) * units / groups * kUnit);
        weights_->multiply(prepared, row, last, first_panel, last_panel, y);
        if constexpr (kGelu) {
          const int64_t output = first_panel * kPanel;
          gelu(y + row * outputs + output, last - row, std::min(outputs, last_panel * kPanel) - output,
               outputs);
        }
      });
      keep_small(prepared.quantised, prepared.row_scales);
      return nullptr;
    });
  }

 private:
  std::unique_ptr<Int8Weights> weights_;
};

template <bool kGelu>
struct Int8LinearOp : CodaOp<Int8LinearOp<kGelu>, Int8LinearKernel<kGelu>> {
  static constexpr const char* kName = Int8LinearKernel<kGelu>::kName;
  static constexpr ONNXTensorElementDataType kInputs[] = {
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
  static constexpr ONNXTensorElementDataType kOutputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};

  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) {
    Shape out = context.GetInputShape(0);
    const Shape& weight = context.GetInputShape(1);
    if (out.empty() || weight.size() != 2) return Ort::Status(nullptr);
    out.back() = weight[1];
    return set_shape(context, 0, out);
  }
};

// Two linear layers and the sum behind them, with a ReLU between or without, and with a router or without.
template <bool kRelu, bool kRouter>
struct Int8AdapterKernel {
  static constexpr const char* kName = kRelu ? (kRouter ? "Int8RouterAdapter" : "Int8AddAdapter")
                                             : (kRouter ? "Int8RouterLowRank" : "Int8AddLowRank");

  explicit Int8AdapterKernel(const OrtKernelInfo* raw) {
    const Ort::ConstKernelInfo info(raw);
    down_ = int8_weights(info, 2);
    up_ = int8_weights(info, 5);
    if (up_->inputs() != down_->outputs() || up_->outputs() != down_->inputs()) {
      throw std::runtime_error("down must be [width, bottleneck] and up [bottleneck, width]");
    }
    if constexpr (kRouter) {
      const auto router = constant(info, 8);
      if (shape_of(router) != std::vector<int64_t>{down_->inputs(), 1}) {
        throw std::runtime_error("router must be [width, 1]");
      }
      router_.assign(router.GetTensorData<float>(), router.GetTensorData<float>() + down_->inputs());
    }
  }

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded(kName, [&]() -> OrtStatusPtr {
      constexpr int64_t kBlock = 32;  // rows of a task: as many as kernels read together
      Ort::KernelContext context(raw);
      const auto residual = context.GetInput(0), x = context.GetInput(1);
      const auto shape = shape_of(x);
      const int64_t width = down_->inputs(), bottleneck = down_->outputs();
      if (shape.empty() || shape_of(residual) != shape || shape.back() != width) {
        throw std::runtime_error("residual and x must be [..., width]");
      }
      const int64_t rows = rows_of(x, width);
      const auto *added = residual.GetTensorData<float>(), *from = x.GetTensorData<float>();
      auto* y = context.GetOutput(0, shape.data(), shape.size()).GetTensorMutableData<float>();
      auto narrow = shape;
      narrow.back() = bottleneck;
      auto* middle = context.GetOutput(1, narrow.data(), narrow.size()).GetTensorMutableData<float>();
      float* scores = nullptr;
      if constexpr (kRouter) {
        scores = context.GetOutput(2, shape.data(), shape.size() - 1).GetTensorMutableData<float>();
      }
      parallel(raw, (rows + kBlock - 1) / kBlock, 64 << 10, [&](int64_t block) {
        thread_local Int8Rows quantised;
        const int64_t first = block * kBlock, count = std::min(kBlock, rows - first), at = first * width;
        float* hidden = middle + first * bottleneck;
        down_->reserve(count, quantised);
        down_->quantize(from + at, 0, count, quantised);
        if constexpr (kRouter) {
          for (int64_t row = 0; row < count; ++row) {
            scores[first + row] = score(from + at + row * width, router_.data(), width);
          }
        }
        down_->multiply(quantised, 0, count, 0, down_->panels(), hidden);
        if constexpr (kRelu) {
          for (int64_t i = 0; i < count * bottleneck; ++i) hidden[i] = std::max(hidden[i], 0.0f);
        }
        up_->reserve(count, quantised);
        up_->quantize(hidden, 0, count, quantised);
        up_->multiply(quantised, 0, count, 0, up_->panels(), y + at);
        for (int64_t row = 0; row < count; ++row) {
          add_gated(y + at + row * width, added + at + row * width, 1.0f, width);
        }
        keep_small(quantised.quantised, quantised.row_scales);
      });
      return nullptr;
    });
  }

 private:
  std::unique_ptr<Int8Weights> down_, up_;
  AlignedVector<float> router_;  // [width]
};

// The last input and the last output are the router's.
template <bool kRelu, bool kRouter>
struct Int8AdapterOp : CodaOp<Int8AdapterOp<kRelu, kRouter>, Int8AdapterKernel<kRelu, kRouter>> {
  static constexpr const char* kName = Int8AdapterKernel<kRelu, kRouter>::kName;
  static constexpr ONNXTensorElementDataType kInputs[] = {
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
  static constexpr ONNXTensorElementDataType kOutputs[] = {
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};

  size_t GetInputTypeCount() const { return std::size(kInputs) - (kRouter ? 0 : 1); }
  size_t GetOutputTypeCount() const { return std::size(kOutputs) - (kRouter ? 0 : 1); }

  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) {
    const Shape &x = context.GetInputShape(0), &down = context.GetInputShape(2);
    if (x.empty() || down.size() != 2) return Ort::Status(nullptr);
    if constexpr (kRouter) {
      const Shape each(x.begin(), x.end() - 1);
      if (auto status = set_shape(context, 2, each); !status.IsOK()) return status;
    }
    Shape narrow = x;
    narrow.back() = down[1];
    if (auto status = set_shape(context, 1, narrow); !status.IsOK()) return status;
    return set_shape(context, 0, x);
  }
};

}  // namespace

std::vector<const OrtCustomOp*> int8_operators() {
  static const Int8LinearOp<false> linear;
  static const Int8LinearOp<true> linear_gelu;
  static const Int8AdapterOp<true, false> adapter;
  static const Int8AdapterOp<true, true> router_adapter;
  static const Int8AdapterOp<false, false> low_rank;
  static const Int8AdapterOp<false, true> router_low_rank;
  if (!Int8Weights::supported()) return {};
  return {&linear, &linear_gelu, &adapter, &router_adapter, &low_rank, &router_low_rank};
}

}  // namespace coda
