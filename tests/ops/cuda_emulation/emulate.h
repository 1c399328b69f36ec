// Enough of CUDA for our kernels on a CPU: the threads of a block are fibres. Warps run as far as they can without each
// other, in an order that is drawn anew, so that what lacks a barrier goes wrong. Shared memory starts as NaN, and has a guard behind it.
#pragma once

#include <csetjmp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(threads)

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration };
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice };
using cudaStream_t = void*;
struct cudaFuncAttributes {};
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) { return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

using __half = _Float16;
inline float __half2float(__half x) { return static_cast<float>(x); }
inline __half __float2half_rn(float x) { return static_cast<__half>(x); }

template <typename To, typename From>
To bits_of(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &x, sizeof to);
  return to;
}
inline uint32_t __float_as_uint(float x) { return bits_of<uint32_t>(x); }
inline float __uint_as_float(uint32_t x) { return bits_of<float>(x); }
inline int __double2hiint(double x) { return static_cast<int>(bits_of<uint64_t>(x) >> 32); }
inline int __double2loint(double x) { return static_cast<int>(bits_of<uint64_t>(x)); }
inline double __hiloint2double(int high, int low) {
  return bits_of<double>(static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 | static_cast<uint32_t>(low));
}

namespace emulated {

struct Index {
  unsigned x;
};

void wait_for_block();
void wait_for_warp();

// What the lanes of this thread's warp have handed over, in a buffer that changes from call to call.
void exchange(uint64_t bits, int from_lane, uint64_t& found);

// Run blocks of threads, each of which calls run(data).
cudaError_t run_blocks(int64_t blocks, int threads, size_t shared_bytes, void (*run)(void*), void* data);

template <typename T>
T from_lane(T value, int lane) {
  uint64_t bits = 0, found = 0;
  std::memcpy(&bits, &value, sizeof value);
  exchange(bits, lane, found);
  T other;
  std::memcpy(&other, &found, sizeof other);
  return other;
}

}  // namespace emulated

extern emulated::Index threadIdx, blockIdx;
inline void __syncthreads() { emulated::wait_for_block(); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int step) {
  return emulated::from_lane(value, static_cast<int>(threadIdx.x % 32) ^ step);
}

// As on a card, lanes below the step keep their own.
template <typename T>
T __shfl_up_sync(unsigned, T value, int step) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return emulated::from_lane(value, lane < step ? lane : lane - step);
}

namespace coda {

extern double shared[];

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, size_t shared_bytes, cudaStream_t, Arguments... arguments) {
  auto call = [&] { kernel(arguments...); };
  using Call = decltype(call);
  return emulated::run_blocks(blocks, 256, shared_bytes, [](void* data) { (*static_cast<Call*>(data))(); }, &call);
}

}  // namespace coda
