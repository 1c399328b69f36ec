// What the kernels use of CUDA: launches, and sums over a warp and over a block. A C++ compiler takes the kernels too, with
// an emulation in the place of CUDA's headers.
#pragma once

#ifdef CODA_EMULATED
#include "emulate.h"
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <cstddef>
#include <cstdint>

namespace coda {

constexpr int kThreads = 256;  // of every block
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

#ifndef CODA_EMULATED
// Start blocks of kThreads on a stream.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, size_t shared_bytes, cudaStream_t stream,
                   Arguments... arguments) {
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  kernel<<<static_cast<unsigned>(blocks), kThreads, shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
}
#endif

template <typename T>
__device__ T warp_sum(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// Counts of a block's threads, put together. Two results need one barrier between them: they use the partial ones in turn.
class BlockCounts {
 public:
  using Partials = int64_t[2][kWarps];

  __device__ explicit BlockCounts(Partials& partials) : partials_(partials) {}

  // The sum, in every thread; before: that of the threads before this one.
  __device__ int64_t sum(int64_t value, int64_t* before = nullptr) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    int64_t upto = value;  // this lane
    for (int step = 1; step < kWarp; step *= 2) {
      const int64_t lower = __shfl_up_sync(kAllLanes, upto, step);
      if (lane >= step) upto += lower;
    }
    int64_t* partial = partials_[turn_];
    turn_ = 1 - turn_;
    if (lane == kWarp - 1) partial[warp] = upto;
    __syncthreads();
    int64_t total = 0, earlier = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w == warp) earlier = total;
      total += partial[w];
    }
    if (before != nullptr) *before = earlier + upto - value;
    return total;
  }

  // The largest of numbers that are not negative.
  __device__ int64_t largest(int64_t value) {
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const int64_t other = __shfl_xor_sync(kAllLanes, value, step);
      value = other > value ? other : value;
    }
    int64_t* partial = partials_[turn_];
    turn_ = 1 - turn_;
    if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = value;
    __syncthreads();
    int64_t found = 0;
    for (int w = 0; w < kWarps; ++w) found = partial[w] > found ? partial[w] : found;
    return found;
  }

 private:
  Partials& partials_;
  int turn_ = 0;
};

// Two counts in one, so that they are summed together.
__device__ inline int64_t pair(int high, int low) { return static_cast<int64_t>(high) << 32 | static_cast<uint32_t>(low); }
__device__ inline int high_of(int64_t both) { return static_cast<int>(both >> 32); }
__device__ inline int low_of(int64_t both) { return static_cast<int>(both & 0xffffffff); }

}  // namespace coda
