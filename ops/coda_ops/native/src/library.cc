// The kernels as onnxruntime sees them: types, shapes, checks, and the threads that rows are shared among.
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "adapter.h"
#include "attention.h"
#include "gelu.h"
#include "int8_linear.h"
#include "norm.h"
#include "route.h"
#include "tokens.h"

#if defined(_WIN32)
#define CODA_EXPORT extern "C" __declspec(dllexport)
#else
#define CODA_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

using Dim = Ort::ShapeInferContext::SymbolicInteger;
using Shape = Ort::ShapeInferContext::Shape;

OrtStatusPtr invalid(const std::string& message) {
  return Ort::GetApi().CreateStatus(ORT_INVALID_ARGUMENT, message.c_str());
}

// Run one function for every index below count on onnxruntime's threads, in blocks that each hold about 64 KiB of work.
template <typename Function>
void parallel(OrtKernelContext* context, int64_t count, int64_t bytes_each, const Function& function) {
  const int64_t block = std::max<int64_t>(1, (64 << 10) / std::max<int64_t>(1, bytes_each));
  const int64_t blocks = (count + block - 1) / block;
  const auto run = [&](int64_t b) {
    for (int64_t i = b * block; i < std::min(count, (b + 1) * block); ++i) function(i);
  };
  if (blocks <= 1) {
    if (blocks == 1) run(0);
    return;
  }
  using Run = decltype(run);
  Ort::KernelContext(context).ParallelFor(
      [](void* data, size_t b) { (*static_cast<const Run*>(data))(static_cast<int64_t>(b)); },
      static_cast<size_t>(blocks), 0, const_cast<void*>(static_cast<const void*>(&run)));
}

std::vector<int64_t> shape_of(const Ort::ConstValue& value) { return value.GetTensorTypeAndShapeInfo().GetShape(); }

// How many rows of so many numbers a tensor holds.
int64_t rows_of(const Ort::ConstValue& value, int64_t width) {
  return width == 0 ? 0 : static_cast<int64_t>(value.GetTensorTypeAndShapeInfo().GetElementCount()) / width;
}

// Run a body; what it throws becomes a status.
template <typename Body>
OrtStatusPtr guarded(const char* name, Body body) {
  try {
    return body();
  } catch (const std::exception& error) {
    return invalid(std::string(name) + ": " + error.what());
  }
}

// What the operators share: names, types, a kernel made from attributes, shapes inferred from the inputs'.
template <typename Op, typename Kernel>
struct CodaOp : Ort::CustomOpBase<Op, Kernel, true> {
  const char* GetName() const { return Op::kName; }
  size_t GetInputTypeCount() const { return std::size(Op::kInputs); }
  size_t GetOutputTypeCount() const { return std::size(Op::kOutputs); }
  ONNXTensorElementDataType GetInputType(size_t i) const { return Op::kInputs[i]; }
  ONNXTensorElementDataType GetOutputType(size_t i) const { return Op::kOutputs[i]; }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    return guarded(Op::kName, [&]() -> OrtStatusPtr {
      *kernel = new Kernel(info);
      return nullptr;
    });
  }
};

struct RouteKernel {
  explicit RouteKernel(const OrtKernelInfo* raw) {
    Ort::ConstKernelInfo info(raw);
    p_ = info.GetAttribute<int64_t>("numerator");
    q_ = info.GetAttribute<int64_t>("denominator");
    const auto iterations = info.GetAttribute<int64_t>("iterations");
    if (p_ < q_ || q_ < 1 || iterations < 1) throw std::runtime_error("r must be at least 1, iterations too");
    epsilons_ = coda::epsilons(iterations, info.GetAttribute<float>("epsilon_start"),
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
      const int64_t batch = shape[0], tokens = shape[1], slots = coda::slot_count(tokens, p_, q_);
      const int64_t out[] = {batch, slots};
      auto* indices = context.GetOutput(0, out, 2).GetTensorMutableData<int64_t>();
      auto* gates = context.GetOutput(1, out, 2).GetTensorMutableData<float>();
      auto* used = context.GetOutput(2, out, 2).GetTensorMutableData<bool>();
      const auto* s = scores.GetTensorData<float>();
      const auto* m = mask.GetTensorData<bool>();
      parallel(raw, batch, tokens * 20 * 16, [&](int64_t row) {  // every iteration reads all scores
        thread_local coda::RouteScratch scratch;
        coda::route_row(s + row * tokens, m + row * tokens, tokens, slots, p_, q_, epsilons_, scratch,
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
      out[1] = Dim(coda::slot_count(scores[1].AsInt(), p, q));
    } else if (p != q) {
      // Layers of one r share one name, so that fusions see equal shapes; onnxruntime keeps pointers to names.
      static std::mutex mutex;
      static std::set<std::string> names;
      const std::lock_guard<std::mutex> lock(mutex);
      const auto name = std::string(scores[1].AsSym()) + "*" + std::to_string(q) + "/" + std::to_string(p);
      out[1] = Dim(names.insert(name).first->c_str());
    }
    for (size_t i = 0; i < std::size(kOutputs); ++i) {
      if (auto status = context.SetOutputShape(i, out, kOutputs[i]); !status.IsOK()) return status;
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
      if (!inside(at, is[0] * slots, tokens)) return invalid("TakeTokens: an index lies outside of the text");
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
    return context.SetOutputShape(0, Shape{indices[0], indices[1], x[2]});
  }
};

struct PutKernel {
  explicit PutKernel(const OrtKernelInfo*) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded("PutTokens", [&]() -> OrtStatusPtr {
      Ort::KernelContext context(raw);
      const auto base = context.GetInput(0), indices = context.GetInput(1);
      const auto gates = context.GetInput(2), update = context.GetInput(3);
      const auto bs = shape_of(base), is = shape_of(indices);
      const std::vector<int64_t> us{is.empty() ? 0 : is[0], is.size() < 2 ? 0 : is[1], bs.size() < 3 ? 0 : bs[2]};
      if (bs.size() != 3 || is.size() != 2 || is[0] != bs[0] ||
          shape_of(gates) != is || shape_of(update) != us) {
        return invalid("PutTokens: base must be [batch, tokens, width], indices and gates [batch, slots] and update "
                       "[batch, slots, width]");
      }
      const int64_t tokens = bs[1], slots = is[1], width = bs[2];
      const auto* at = indices.GetTensorData<int64_t>();
      if (!inside(at, is[0] * slots, tokens)) return invalid("PutTokens: an index lies outside of the text");
      const auto* old = base.GetTensorData<float>();
      auto* out = context.GetOutput(0, bs.data(), bs.size()).GetTensorMutableData<float>();
      const auto* gate = gates.GetTensorData<float>();
      const auto* add = update.GetTensorData<float>();
      const int64_t bytes = width * static_cast<int64_t>(sizeof(float));
      if (out != old) {  // onnxruntime hands over base itself where nobody else reads it
        parallel(raw, bs[0] * tokens, bytes, [&](int64_t row) {
          std::memcpy(out + row * width, old + row * width, bytes);
        });
      }
      parallel(raw, is[0] * slots, 2 * bytes, [&](int64_t slot) {  // indices of a row are distinct: no two collide
        coda::add_gated(out + (slot / slots * tokens + at[slot]) * width, add + slot * width, gate[slot], width);
      });
      return nullptr;
    });
  }
};

struct PutOp : CodaOp<PutOp, PutKernel> {
  static constexpr const char* kName = "PutTokens";
  static constexpr ONNXTensorElementDataType kInputs[] = {
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
  static constexpr ONNXTensorElementDataType kOutputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};

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
    return base.size() == 3 ? context.SetOutputShape(0, base) : Ort::Status(nullptr);  // empty: not known
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
    return context.SetOutputShape(0, Shape{used[0], used[1], rows[1]});
  }
};

// Shapes of an operator whose first output is as its first input.
Ort::Status as_the_first(Ort::ShapeInferContext& context) {
  const Shape& x = context.GetInputShape(0);
  return x.empty() ? Ort::Status(nullptr) : context.SetOutputShape(0, x);
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
        coda::add_gelu(from + row * width, added, width, out + row * width);
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
        coda::add_norm(a + at, b + at, shift, scale, bias, epsilon_, width, out + at);
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

template <coda::Activation kActivation>
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
      static thread_local coda::AdapterWeights weights;
      const coda::AdapterWeights& mine = weights;  // this thread's, for all that take part
      weights.set(down.GetTensorData<float>(), down_bias.GetTensorData<float>(), up.GetTensorData<float>(),
                  up_bias.GetTensorData<float>(), width, ds[1]);
      parallel(raw, (rows + kBlock - 1) / kBlock, 64 << 10, [&](int64_t block) {
        thread_local coda::AdapterScratch scratch;
        const int64_t at = block * kBlock * width, count = std::min(kBlock, rows - block * kBlock);
        coda::add_adapter(mine, kActivation, added + at, from + at, count, y + at, scratch);
      });
      return nullptr;
    });
  }
};

template <coda::Activation kActivation>
struct AdapterOp : CodaOp<AdapterOp<kActivation>, AdapterKernel<kActivation>> {
  static constexpr const char* kName = kActivation == coda::Activation::kRelu ? "AddAdapter" : "AddSwishAdapter";
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
        thread_local coda::AttentionScratch scratch;
        const int64_t text = task / (heads_ * blocks), head = task / blocks % heads_, first = task % blocks * kBlock;
        const float* query = x + text * tokens * 3 * width + head * each;
        coda::attend({query, query + width, query + 2 * width, 3 * width, b + text * tokens, scale_, tokens, each,
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
    if (out.size() != 3 || !out[2].IsInt()) return Ort::Status(nullptr);
    out[2] = Dim(out[2].AsInt() / 3);
    return context.SetOutputShape(0, out);
  }
};

// A constant input of a node.
Ort::ConstValue constant(const Ort::ConstKernelInfo& info, size_t index) {
  int is_constant = 0;
  const auto value = info.GetTensorConstantInput(index, &is_constant);
  if (!is_constant) throw std::runtime_error("weight, scale and bias must be constants");
  return value;
}

// A product's rounded weights, from the constant inputs of a node that begin at one of them.
std::unique_ptr<coda::Int8Weights> int8_weights(const Ort::ConstKernelInfo& info, size_t first) {
  const auto weight = constant(info, first), scale = constant(info, first + 1), bias = constant(info, first + 2);
  const auto shape = shape_of(weight);
  if (shape.size() != 2 || shape_of(scale) != std::vector<int64_t>{shape[1]} ||
      shape_of(bias) != std::vector<int64_t>{shape[1]}) {
    throw std::runtime_error("weight must be [inputs, outputs], scale and bias [outputs]");
  }
  return std::make_unique<coda::Int8Weights>(weight.GetTensorData<uint8_t>(), scale.GetTensorData<float>(),
                                             bias.GetTensorData<float>(), shape[0], shape[1]);
}

template <bool kGelu>
struct Int8LinearKernel {
  explicit Int8LinearKernel(const OrtKernelInfo* raw) : weights_(int8_weights(Ort::ConstKernelInfo(raw), 1)) {}

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded("Int8Linear", [&]() -> OrtStatusPtr {
      constexpr int64_t kBlock = 256;  // rows that share one walk through the weights
      constexpr int64_t kTasks = 16;   // enough for every thread to stay busy to the end
      constexpr int64_t kUnit = 4;     // panels that stay together
      Ort::KernelContext context(raw);
      const auto x = context.GetInput(0);
      auto shape = shape_of(x);
      const int64_t inputs = weights_->inputs(), outputs = weights_->outputs();
      if (shape.empty() || shape.back() != inputs) return invalid("Int8Linear: x must be [..., inputs]");
      const int64_t rows = rows_of(x, inputs);
      shape.back() = outputs;
      auto* y = context.GetOutput(0, shape.data(), shape.size()).GetTensorMutableData<float>();
      const auto* from = x.GetTensorData<float>();
      static thread_local coda::Int8Rows mine;
      coda::Int8Rows& prepared = mine;  // this thread's, for all that take part
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
          const int64_t output = first_panel * coda::kPanel;
          coda::gelu(y + row * outputs + output, last - row, std::min(outputs, last_panel * coda::kPanel) - output,
                     outputs);
        }
      });
      return nullptr;
    });
  }

 private:
  std::unique_ptr<coda::Int8Weights> weights_;
};

template <bool kGelu>
struct Int8LinearOp : CodaOp<Int8LinearOp<kGelu>, Int8LinearKernel<kGelu>> {
  static constexpr const char* kName = kGelu ? "Int8LinearGelu" : "Int8Linear";
  static constexpr ONNXTensorElementDataType kInputs[] = {
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
  static constexpr ONNXTensorElementDataType kOutputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};

  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) {
    Shape out = context.GetInputShape(0);
    const Shape& weight = context.GetInputShape(1);
    if (out.empty() || weight.size() != 2) return Ort::Status(nullptr);
    out.back() = weight[1];
    return context.SetOutputShape(0, out);
  }
};

struct Int8AdapterKernel {
  explicit Int8AdapterKernel(const OrtKernelInfo* raw) {
    const Ort::ConstKernelInfo info(raw);
    down_ = int8_weights(info, 2);
    up_ = int8_weights(info, 5);
    if (up_->inputs() != down_->outputs() || up_->outputs() != down_->inputs()) {
      throw std::runtime_error("down must be [width, bottleneck] and up [bottleneck, width]");
    }
  }

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded("Int8AddAdapter", [&]() -> OrtStatusPtr {
      constexpr int64_t kBlock = 32;  // rows of a task: as many as kernels read together
      Ort::KernelContext context(raw);
      const auto residual = context.GetInput(0), x = context.GetInput(1);
      const auto shape = shape_of(x);
      const int64_t width = down_->inputs(), bottleneck = down_->outputs();
      if (shape.empty() || shape_of(residual) != shape || shape.back() != width) {
        return invalid("Int8AddAdapter: residual and x must be [..., width]");
      }
      const int64_t rows = rows_of(x, width);
      const auto *added = residual.GetTensorData<float>(), *from = x.GetTensorData<float>();
      auto* y = context.GetOutput(0, shape.data(), shape.size()).GetTensorMutableData<float>();
      auto narrow = shape;
      narrow.back() = bottleneck;
      auto* middle = context.GetOutput(1, narrow.data(), narrow.size()).GetTensorMutableData<float>();
      parallel(raw, (rows + kBlock - 1) / kBlock, 64 << 10, [&](int64_t block) {
        thread_local coda::Int8Rows levels;
        const int64_t first = block * kBlock, count = std::min(kBlock, rows - first), at = first * width;
        float* hidden = middle + first * bottleneck;
        down_->reserve(count, levels);
        down_->quantize(from + at, 0, count, levels);
        down_->multiply(levels, 0, count, 0, down_->panels(), hidden);
        for (int64_t i = 0; i < count * bottleneck; ++i) hidden[i] = std::max(hidden[i], 0.0f);
        up_->reserve(count, levels);
        up_->quantize(hidden, 0, count, levels);
        up_->multiply(levels, 0, count, 0, up_->panels(), y + at);
        for (int64_t row = 0; row < count; ++row) {
          coda::add_gated(y + at + row * width, added + at + row * width, 1.0f, width);
        }
      });
      return nullptr;
    });
  }

 private:
  std::unique_ptr<coda::Int8Weights> down_, up_;
};

struct Int8AdapterOp : CodaOp<Int8AdapterOp, Int8AdapterKernel> {
  static constexpr const char* kName = "Int8AddAdapter";
  static constexpr ONNXTensorElementDataType kInputs[] = {
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
      ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};
  static constexpr ONNXTensorElementDataType kOutputs[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                                           ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};

  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) {
    const Shape &x = context.GetInputShape(0), &down = context.GetInputShape(2);
    if (x.empty() || down.size() != 2) return Ort::Status(nullptr);
    Shape narrow = x;
    narrow.back() = down[1];
    if (auto status = context.SetOutputShape(1, narrow); !status.IsOK()) return status;
    return context.SetOutputShape(0, x);
  }
};

}  // namespace

// Called by onnxruntime. A runtime older than the headers has no such API: then nothing is registered, and function
// bodies run.
CODA_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) return nullptr;
  Ort::InitApi(api);
  static const RouteOp route;
  static const TakeOp take;
  static const PutOp put;
  static const PackOp pack;
  static const UnpackOp unpack;
  static const NormOp norm;
  static const AttentionOp attention;
  static const AdapterOp<coda::Activation::kRelu> adapter;
  static const AdapterOp<coda::Activation::kSwish> swish_adapter;
  static const GeluOp gelu;
  static const Int8LinearOp<false> int8_linear;
  static const Int8LinearOp<true> int8_linear_gelu;
  static const Int8AdapterOp int8_adapter;
  try {
    static Ort::CustomOpDomain domain = [] {
      Ort::CustomOpDomain made("ai.coda");
      made.Add(&route);
      made.Add(&take);
      made.Add(&put);
      made.Add(&pack);
      made.Add(&unpack);
      made.Add(&norm);
      made.Add(&attention);
      made.Add(&adapter);
      made.Add(&swish_adapter);
      made.Add(&gelu);
      if (coda::Int8Weights::supported()) {
        made.Add(&int8_linear);
        made.Add(&int8_linear_gelu);
        made.Add(&int8_adapter);
      }
      return made;
    }();
    Ort::UnownedSessionOptions(options).Add(domain);
    return nullptr;
  } catch (const Ort::Exception& error) {
    return api->CreateStatus(error.GetOrtErrorCode(), error.what());
  }
}
