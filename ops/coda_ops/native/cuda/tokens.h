// TakeTokens, PutTokens and PutDifference: a warp moves the token of one slot, in steps as wide as its address allows.
#pragma once

#include "device.h"

namespace coda {

// Numbers that are read and written at once.
template <typename T, int kNumbers>
struct alignas(sizeof(T) * kNumbers) Numbers {
  T at[kNumbers];
};

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline void from_float(float x, float& to) { to = x; }
__device__ inline void from_float(float x, __half& to) { to = __float2half_rn(x); }

// The slot of this warp, among [rows, slots], and its token, among [rows, tokens], -1 where the index points outside of its
// sequence; false where there is no slot.
__device__ inline bool find_slot(const int64_t* indices, int tokens, int slots, int64_t& slot, int64_t& token) {
  const unsigned blocks_a_row = (static_cast<unsigned>(slots) - 1) / kWarps + 1, row = blockIdx.x / blocks_a_row;
  const unsigned in_row = blockIdx.x % blocks_a_row * kWarps + threadIdx.x / kWarp;
  if (in_row >= static_cast<unsigned>(slots)) return false;
  slot = static_cast<int64_t>(row) * slots + in_row;
  const int64_t index = indices[slot];
  token = index >= 0 && index < tokens ? static_cast<int64_t>(row) * tokens + index : -1;
  return true;
}

// x: [rows, tokens, width]; taken: [rows, slots, width], in words of any size.
template <typename Word>
__global__ void __launch_bounds__(kThreads)
    take_kernel(const Word* x, const int64_t* indices, Word* taken, int tokens, int slots, int64_t width) {
  int64_t slot, token;
  if (!find_slot(indices, tokens, slots, slot, token)) return;
  for (int64_t i = threadIdx.x % kWarp; i < width; i += kWarp) {
    taken[slot * width + i] = token < 0 ? Word{} : x[token * width + i];
  }
}

// out += gate * (now - before) at the slots' tokens, or gate * now without before. A slot with gate 0 writes nothing.
// out: [rows, tokens, width]; now, before: [rows, slots, width], width in steps of kNumbers.
template <typename T, int kNumbers, bool kDifference>
__global__ void __launch_bounds__(kThreads)
    put_kernel(T* out, const int64_t* indices, const float* gates, const T* now, const T* before, int tokens, int slots,
               int64_t width) {
  using Step = Numbers<T, kNumbers>;
  int64_t slot, token;
  if (!find_slot(indices, tokens, slots, slot, token)) return;
  const float gate = gates[slot];
  if (!(gate > 0.0f) || token < 0) return;
  Step* const sums = reinterpret_cast<Step*>(out) + token * width;
  const Step* const updates = reinterpret_cast<const Step*>(now) + slot * width;
  const Step* const less = reinterpret_cast<const Step*>(before) + slot * width;
  for (int64_t i = threadIdx.x % kWarp; i < width; i += kWarp) {
    Step sum = sums[i], update = updates[i], was = kDifference ? less[i] : update;
#pragma unroll
    for (int c = 0; c < kNumbers; ++c) {
      const float change = kDifference ? to_float(update.at[c]) - to_float(was.at[c]) : to_float(update.at[c]);
      from_float(to_float(sum.at[c]) + gate * change, sum.at[c]);
    }
    sums[i] = sum;
  }
}

}  // namespace coda
