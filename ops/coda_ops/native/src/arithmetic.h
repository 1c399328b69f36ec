// What several kernels compute with: products whose sums stay in registers, and exp. To be inlined into functions that are
// compiled for one instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__GNUC__)
#define CODA_INLINE inline __attribute__((always_inline))
#else
#define CODA_INLINE inline
#endif

namespace coda {

constexpr int64_t kLanes = 16;  // rows are padded to a multiple of it, a multiple of every register's

inline int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// exp of x <= 0 to 2e-7, without branches; below -87 it stays at 1e-38.
CODA_INLINE float exp_nonpositive(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * kLog2e + kRound, n = shifted - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float y = 1.0f / 5040;
  y = y * r + 1.0f / 720;
  y = y * r + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127) << 23;  // 2^n
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return y * power;
}

#if defined(__GNUC__)
// As many floats as one register holds: wider ones would be added up in memory.
template <int L>
struct Register;
template <>
struct Register<16> {
  using Floats = float __attribute__((vector_size(64), aligned(sizeof(float)), may_alias));
};
template <>
struct Register<8> {
  using Floats = float __attribute__((vector_size(32), aligned(sizeof(float)), may_alias));
};
template <>
struct Register<4> {
  using Floats = float __attribute__((vector_size(16), aligned(sizeof(float)), may_alias));
};
#endif

// c = a · b for R rows and P times L columns, whose sums stay in registers. a: [R, depth], b: [depth, …], c: [R, …].
template <int L, int R, int P>
CODA_INLINE void multiply_block(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth,
                                float* c, int64_t c_stride) {
#if defined(__GNUC__)
  using Floats = typename Register<L>::Floats;
  Floats sum[R][P] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Floats row[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) row[p] = *reinterpret_cast<const Floats*>(b + k * b_stride + p * L);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) sum[r][p] += a[r * a_stride + k] * row[p];
    }
  }
#else
  float sum[R][P * L] = {};
  for (int64_t k = 0; k < depth; ++k) {
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < P * L; ++j) sum[r][j] += a[r * a_stride + k] * b[k * b_stride + j];
    }
  }
#endif
  for (int r = 0; r < R; ++r) std::memcpy(c + r * c_stride, &sum[r], sizeof sum[r]);
}

// The same for all columns, a multiple of kLanes of them.
template <int L, int R, int P>
CODA_INLINE void multiply_rows(const float* a, int64_t a_stride, const float* b, int64_t columns, int64_t depth,
                               float* c) {
  int64_t j = 0;
  for (; j + P * L <= columns; j += P * L) {
    multiply_block<L, R, P>(a, a_stride, b + j, columns, depth, c + j, columns);
  }
  for (; j < columns; j += L) multiply_block<L, R, 1>(a, a_stride, b + j, columns, depth, c + j, columns);
}

template <int L, int R, int P>
CODA_INLINE void multiply(const float* a, int64_t a_stride, int64_t rows, const float* b, int64_t columns, int64_t depth,
                          float* c) {
  int64_t r = 0;
  for (; r + R <= rows; r += R) multiply_rows<L, R, P>(a + r * a_stride, a_stride, b, columns, depth, c + r * columns);
  for (; r < rows; ++r) multiply_rows<L, 1, P>(a + r * a_stride, a_stride, b, columns, depth, c + r * columns);
}

}  // namespace coda
