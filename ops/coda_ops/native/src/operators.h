// What every operator is made of as onnxruntime sees it: checks, shapes, and the threads that rows are shared among.
#pragma once

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace coda {

// What each file of operators offers; they live as long as the library.
std::vector<const OrtCustomOp*> routing_operators();
std::vector<const OrtCustomOp*> embedding_operators();
std::vector<const OrtCustomOp*> layer_operators();
std::vector<const OrtCustomOp*> attention_operators();
std::vector<const OrtCustomOp*> int8_operators();

using Dim = Ort::ShapeInferContext::SymbolicInteger;
using Shape = Ort::ShapeInferContext::Shape;

// Tell an output's shape, unless the length of an axis has neither a number nor a name, which reads as -1: onnxruntime would
// take any two of those for equal, and one buffer for both.
inline Ort::Status set_shape(Ort::ShapeInferContext& context, size_t output, const Shape& shape,
                             ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
  const bool known = std::none_of(shape.begin(), shape.end(), [](const Dim& d) { return d.IsInt() && d.AsInt() < 0; });
  return known ? context.SetOutputShape(output, shape, type) : Ort::Status(nullptr);
}

inline OrtStatusPtr invalid(const std::string& message) {
  return Ort::GetApi().CreateStatus(ORT_INVALID_ARGUMENT, message.c_str());
}

// Run one function for every index below count on onnxruntime's threads, in blocks that each hold about 16 KiB of work; an
// index of 0 bytes has none. What it throws is thrown here: out of a thread of onnxruntime's it would end the process.
template <typename Function>
void parallel(OrtKernelContext* context, int64_t count, int64_t bytes_each, const Function& function) {
  if (count <= 0 || bytes_each <= 0) return;
  const int64_t block = std::max<int64_t>(1, (16 << 10) / bytes_each);
  const int64_t blocks = (count + block - 1) / block;
  const auto run = [&](int64_t b) {
    for (int64_t i = b * block; i < std::min(count, (b + 1) * block); ++i) function(i);
  };
  if (blocks == 1) return run(0);
  struct Shared {
    const decltype(run)& run_block;
    std::mutex mutex;
    std::exception_ptr error;  // of the last block that failed
  } shared{run, {}, {}};
  Ort::KernelContext(context).ParallelFor(
      [](void* data, size_t b) {
        auto& all = *static_cast<Shared*>(data);
        try {
          all.run_block(static_cast<int64_t>(b));
        } catch (...) {
          const std::lock_guard<std::mutex> lock(all.mutex);
          all.error = std::current_exception();
        }
      },
      static_cast<size_t>(blocks), 0, &shared);
  if (shared.error) std::rethrow_exception(shared.error);
}

// A tensor's shape. Along axes that are not empty it has so few elements that products of lengths fit into 64 bits.
inline std::vector<int64_t> shape_of(const Ort::ConstValue& value) {
  constexpr int64_t kMost = int64_t{1} << 48;
  auto shape = value.GetTensorTypeAndShapeInfo().GetShape();
  int64_t elements = 1;
  for (const int64_t length : shape) {
    if (length > kMost / elements) throw std::runtime_error("an input has more than 2^48 elements");
    elements *= std::max<int64_t>(1, length);
  }
  return shape;
}

// How many rows of so many numbers a tensor holds.
inline int64_t rows_of(const Ort::ConstValue& value, int64_t width) {
  return width == 0 ? 0 : static_cast<int64_t>(value.GetTensorTypeAndShapeInfo().GetElementCount()) / width;
}

// Run a body; what it throws becomes a status.
template <typename Body>
OrtStatusPtr guarded(const char* name, Body body) noexcept {
  constexpr const char* kNoMemory = "memory does not suffice for this input";
  const auto failed = [name](OrtErrorCode code, const char* why) {
    char message[1024];  // no memory may be left for a string
    std::snprintf(message, sizeof message, "%s: %s", name, why);
    return Ort::GetApi().CreateStatus(code, message);
  };
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return failed(ORT_FAIL, kNoMemory);
  } catch (const std::length_error&) {  // of a vector
    return failed(ORT_FAIL, kNoMemory);
  } catch (const std::exception& error) {
    return failed(ORT_INVALID_ARGUMENT, error.what());
  } catch (...) {
    return failed(ORT_FAIL, "an unknown error");
  }
}

// An attribute of a node, an integer or a finite float32.
template <typename T>
T attribute(const OrtKernelInfo* info, const char* name) {
  constexpr bool kInteger = std::is_same_v<T, int64_t>;
  const auto refused = [&] {
    return std::runtime_error(std::string(name) + " must be given as " + (kInteger ? "an integer" : "a finite number"));
  };
  T value;
  try {
    value = Ort::ConstKernelInfo(info).GetAttribute<T>(name);
  } catch (const Ort::Exception&) {
    throw refused();
  }
  if (!kInteger && !std::isfinite(static_cast<double>(value))) throw refused();
  return value;
}

// What norms add to the variance.
inline float epsilon_of(const OrtKernelInfo* info) {
  const float epsilon = attribute<float>(info, "epsilon");
  if (epsilon < 0) throw std::runtime_error("epsilon must be 0 or above");
  return epsilon;
}

// Element types that kernels are compiled for. Float16_t is kept as bits: arithmetic is of floats.
template <typename T>
constexpr ONNXTensorElementDataType kElement =
    std::is_same_v<T, float> ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;

// Numbers of either type as floats: the given ones, or the scratch that they were widened to.
inline const float* widened(const float* from, int64_t, std::vector<float>&) { return from; }

inline const float* widened(const Ort::Float16_t* from, int64_t count, std::vector<float>& scratch) {
  scratch.resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) scratch[static_cast<size_t>(i)] = from[i].ToFloat();
  return scratch.data();
}

// Where floats of a result go: the output itself, or scratch to be narrowed.
inline float* float_output(float* to, int64_t, std::vector<float>&) { return to; }

inline float* float_output(Ort::Float16_t*, int64_t count, std::vector<float>& scratch) {
  scratch.resize(static_cast<size_t>(count));
  return scratch.data();
}

inline void narrow(const std::vector<float>&, float*) {}

inline void narrow(const std::vector<float>& from, Ort::Float16_t* to) {
  for (size_t i = 0; i < from.size(); ++i) to[i] = Ort::Float16_t(from[i]);
}

// What the operators share: names, types, a kernel made from attributes, shapes inferred from the inputs'.
template <typename Op, typename Kernel>
struct CodaOp : Ort::CustomOpBase<Op, Kernel, true> {
  const char* GetName() const { return Op::kName; }
  size_t GetInputTypeCount() const { return std::size(Op::kInputs); }
  size_t GetOutputTypeCount() const { return std::size(Op::kOutputs); }
  ONNXTensorElementDataType GetInputType(size_t i) const { return Op::kInputs[i]; }
  ONNXTensorElementDataType GetOutputType(size_t i) const { return Op::kOutputs[i]; }

  CodaOp() {
    OrtCustomOp::InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* raw) -> OrtStatusPtr {
      try {
        Ort::ShapeInferContext context(&Ort::GetApi(), raw);
        return Op::InferOutputShape(context).release();
      } catch (...) {
        return nullptr;  // shapes are not known; the kernel says what is wrong
      }
    };
  }

  static Ort::Status InferOutputShape(Ort::ShapeInferContext&) { return Ort::Status(nullptr); }

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    return guarded(Op::kName, [&]() -> OrtStatusPtr {
      *kernel = new Kernel(info);
      return nullptr;
    });
  }
};

}  // namespace coda
