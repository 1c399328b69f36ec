// The library of CUDA kernels that onnxruntime loads.
#include "../src/register.h"
#include "../src/routing.h"
#include "launch.h"

#include <cuda_fp16.h>

namespace coda {
namespace {

constexpr const char* kProvider = "CUDAExecutionProvider";

void check(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return;
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorInvalidPtx:
      throw std::runtime_error(
          "the library of CUDA kernels was built for other cards than this machine's: build it here with `coda-compile "
          "kernels build --target cuda`, or do without: CODA_KERNELS=portable");
    case cudaErrorInsufficientDriver:
      throw std::runtime_error("the driver of this machine's card is older than CUDA " +
                               std::to_string(CUDART_VERSION / 1000) +
                               ", which the kernels were built with: install a newer driver, or build them with an older "
                               "CUDA by `coda-compile kernels build --target cuda`, or do without: CODA_KERNELS=portable");
    default:
      throw std::runtime_error(std::string("CUDA says: ") + cudaGetErrorString(error));
  }
}

cudaStream_t stream_of(const Ort::KernelContext& context) {
  return static_cast<cudaStream_t>(context.GetGPUComputeStream());
}

// What the provider of these operators is, and that this machine's card runs them.
template <typename Base>
struct OnCuda : Base {
  const char* GetExecutionProviderType() const { return kProvider; }
};

struct RouteKernel {
  explicit RouteKernel(const OrtKernelInfo* info) : attributes_(info) {
    check(check_card());
    if (!takes_epsilons(attributes_.epsilons)) {
      throw std::runtime_error("on CUDA epsilon must reach its final value within 256 iterations");
    }
  }

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded("Route", [&]() -> OrtStatusPtr {
      Ort::KernelContext context(raw);
      const RouteSizes n(context, attributes_);
      const int64_t out[] = {n.batch, n.slots};
      auto indices = context.GetOutput(0, out, 2), gates = context.GetOutput(1, out, 2), used = context.GetOutput(2, out, 2);
      check(launch_route(context.GetInput(0).GetTensorData<float>(), context.GetInput(1).GetTensorData<bool>(),
                         indices.GetTensorMutableData<int64_t>(), gates.GetTensorMutableData<float>(),
                         used.GetTensorMutableData<bool>(), n.batch, n.tokens, n.slots, attributes_.numerator,
                         attributes_.denominator, attributes_.epsilons, stream_of(context)));
      return nullptr;
    });
  }

 private:
  RouteAttributes attributes_;
};

struct RouteOp : OnCuda<RouteOpOf<RouteOp, RouteKernel>> {};

template <typename T>
struct TakeKernel {
  explicit TakeKernel(const OrtKernelInfo*) { check(check_card()); }

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded("TakeTokens", [&]() -> OrtStatusPtr {
      Ort::KernelContext context(raw);
      const auto n = TokenSizes::of_take(context);
      const int64_t out[] = {n.batch, n.slots, n.width};
      auto taken = context.GetOutput(0, out, 3);
      check(launch_take(context.GetInput(0).GetTensorRawData(), context.GetInput(1).GetTensorData<int64_t>(),
                        taken.GetTensorMutableRawData(), n.batch, n.tokens, n.slots,
                        n.width * static_cast<int64_t>(sizeof(T)), stream_of(context)));
      return nullptr;
    });
  }
};

template <typename T>
struct TakeOp : OnCuda<TakeOpOf<TakeOp<T>, TakeKernel<T>, T>> {};

template <Put kPut, typename T>
struct PutKernel {
  explicit PutKernel(const OrtKernelInfo*) { check(check_card()); }

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded(name_of(kPut), [&]() -> OrtStatusPtr {
      using Number = std::conditional_t<std::is_same_v<T, float>, float, __half>;
      Ort::KernelContext context(raw);
      const auto n = TokenSizes::of_put(context, kPut);
      const int64_t shape[] = {n.batch, n.tokens, n.width};
      auto out = context.GetOutput(0, shape, 3);
      const auto numbers = [&](size_t i) { return static_cast<const Number*>(context.GetInput(i).GetTensorRawData()); };
      check(launch_put(static_cast<Number*>(out.GetTensorMutableRawData()), numbers(0),
                       context.GetInput(1).GetTensorData<int64_t>(), context.GetInput(2).GetTensorData<float>(), numbers(3),
                       kPut == Put::kDifference ? numbers(4) : nullptr, n.batch, n.tokens, n.slots, n.width, stream_of(context)));
      return nullptr;
    });
  }
};

template <Put kPut, typename T>
struct PutOp : OnCuda<PutOpOf<PutOp<kPut, T>, PutKernel<kPut, T>, kPut, T>> {};

std::vector<const OrtCustomOp*> operators() {
  static const RouteOp route;
  static const TakeOp<float> take;
  static const TakeOp<Ort::Float16_t> take_half;
  static const PutOp<Put::kUpdate, float> put;
  static const PutOp<Put::kUpdate, Ort::Float16_t> put_half;
  static const PutOp<Put::kDifference, float> put_difference;
  static const PutOp<Put::kDifference, Ort::Float16_t> put_difference_half;
  return {&route, &take, &take_half, &put, &put_half, &put_difference, &put_difference_half};
}

}  // namespace
}  // namespace coda

// Called by onnxruntime.
CODA_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  return coda::register_operators(options, base, coda::operators);
}
