#include "launch.h"

#include <algorithm>

#include "route.h"
#include "tokens.h"

namespace coda {
namespace {

// Whether all addresses are multiples of so many bytes.
template <typename... Pointers>
bool aligned(size_t bytes, Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % bytes == 0) && ...);
}

// Positions in a row are ints.
bool too_large(int64_t tokens, int64_t slots) { return std::max(tokens, slots) > 1 << 30; }

int64_t blocks_of(int64_t batch, int64_t slots) { return batch * ((slots + kWarps - 1) / kWarps); }

template <typename Word>
cudaError_t take_words(const void* x, const int64_t* indices, void* taken, int64_t batch, int64_t tokens, int64_t slots,
                       int64_t bytes, cudaStream_t stream) {
  return launch(take_kernel<Word>, blocks_of(batch, slots), 0, stream, static_cast<const Word*>(x), indices,
                static_cast<Word*>(taken), static_cast<int>(tokens), static_cast<int>(slots),
                bytes / static_cast<int64_t>(sizeof(Word)));
}

template <typename T, int kNumbers>
cudaError_t put_steps(T* out, const int64_t* indices, const float* gates, const T* now, const T* before, int64_t batch,
                      int64_t tokens, int64_t slots, int64_t width, cudaStream_t stream) {
  const auto kernel = before == nullptr ? put_kernel<T, kNumbers, false> : put_kernel<T, kNumbers, true>;
  return launch(kernel, blocks_of(batch, slots), 0, stream, out, indices, gates, now, before, static_cast<int>(tokens),
                static_cast<int>(slots), width / kNumbers);
}

}  // namespace

cudaError_t check_card() {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(route_kernel<true>));
  cudaGetLastError();  // what is reported here is not reported again
  return error;
}

bool takes_epsilons(const std::vector<double>& epsilons) {
  return epsilons.size() <= kMostEpsilons || epsilons[kMostEpsilons - 1] == epsilons.back();
}

cudaError_t launch_route(const float* scores, const bool* mask, int64_t* indices, float* gates, bool* used, int64_t batch,
                         int64_t tokens, int64_t slots, int64_t numerator, int64_t denominator,
                         const std::vector<double>& epsilons, cudaStream_t stream) {
  if (batch == 0 || slots == 0) return cudaSuccess;
  if (too_large(tokens, slots) || epsilons.empty() || !takes_epsilons(epsilons)) return cudaErrorInvalidValue;
  Epsilons schedule = {};
  schedule.iterations = static_cast<int>(epsilons.size());
  schedule.count = std::min(schedule.iterations, kMostEpsilons);
  std::copy_n(epsilons.begin(), schedule.count, schedule.at);
  const bool shared = tokens <= kMostSharedTokens;
  const size_t bytes = sizeof(RouteScratch) + (shared ? static_cast<size_t>(tokens * kBytesOfToken) : 0);
  return launch(shared ? route_kernel<true> : route_kernel<false>, batch, bytes, stream, scores, mask, indices, gates, used,
                static_cast<int>(tokens), static_cast<int>(slots), numerator, denominator, schedule);
}

cudaError_t launch_take(const void* x, const int64_t* indices, void* taken, int64_t batch, int64_t tokens, int64_t slots,
                        int64_t bytes, cudaStream_t stream) {
  if (batch == 0 || slots == 0 || bytes == 0) return cudaSuccess;
  if (too_large(tokens, slots)) return cudaErrorInvalidValue;
  if (bytes % 16 == 0 && aligned(16, x, taken)) {
    return take_words<Numbers<uint32_t, 4>>(x, indices, taken, batch, tokens, slots, bytes, stream);
  }
  if (bytes % 4 == 0 && aligned(4, x, taken)) {
    return take_words<uint32_t>(x, indices, taken, batch, tokens, slots, bytes, stream);
  }
  return take_words<uint16_t>(x, indices, taken, batch, tokens, slots, bytes, stream);
}

template <typename T>
cudaError_t launch_put(T* out, const T* base, const int64_t* indices, const float* gates, const T* now, const T* before,
                       int64_t batch, int64_t tokens, int64_t slots, int64_t width, cudaStream_t stream) {
  const int64_t numbers = batch * tokens * width;
  if (numbers == 0) return cudaSuccess;
  if (too_large(tokens, slots)) return cudaErrorInvalidValue;
  if (out != base) {
    const cudaError_t error = cudaMemcpyAsync(out, base, numbers * sizeof(T), cudaMemcpyDeviceToDevice, stream);
    if (error != cudaSuccess) return error;
  }
  if (slots == 0) return cudaSuccess;
  constexpr int kNumbers = 16 / sizeof(T);
  if (width % kNumbers == 0 && aligned(16, out, now, before)) {
    return put_steps<T, kNumbers>(out, indices, gates, now, before, batch, tokens, slots, width, stream);
  }
  return put_steps<T, 1>(out, indices, gates, now, before, batch, tokens, slots, width, stream);
}

template cudaError_t launch_put(float*, const float*, const int64_t*, const float*, const float*, const float*, int64_t,
                                int64_t, int64_t, int64_t, cudaStream_t);
template cudaError_t launch_put(__half*, const __half*, const int64_t*, const float*, const __half*, const __half*, int64_t,
                                int64_t, int64_t, int64_t, cudaStream_t);

}  // namespace coda
