// What every operator is made of as onnxruntime sees it: checks, shapes, and the threads that rows are shared among.
#pragma once

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>
#undef ORT_API_MANUAL_INIT

#include <algorithm>
#include <cstdint>
#include <exception>
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

// Run one function for every index below count on onnxruntime's threads, in blocks that each hold about 16 KiB of work.
template <typename Function>
void parallel(OrtKernelContext* context, int64_t count, int64_t bytes_each, const Function& function) {
  const int64_t block = std::max<int64_t>(1, (16 << 10) / std::max<int64_t>(1, bytes_each));
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

inline std::vector<int64_t> shape_of(const Ort::ConstValue& value) { return value.GetTensorTypeAndShapeInfo().GetShape(); }

// How many rows of so many numbers a tensor holds.
inline int64_t rows_of(const Ort::ConstValue& value, int64_t width) {
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

  OrtStatusPtr CreateKernelV2(const OrtApi&, const OrtKernelInfo* info, void** kernel) const {
    return guarded(Op::kName, [&]() -> OrtStatusPtr {
      *kernel = new Kernel(info);
      return nullptr;
    });
  }
};

}  // namespace coda
