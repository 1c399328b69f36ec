// AMX multiplies tiles of 16 rows by 64 bytes, signed by signed.
#include "int8_avx512.h"

#if CODA_X86 && defined(__linux__) && __GNUC__ >= 11
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#define AMX __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,amx-tile,amx-int8")))

namespace coda {
namespace {

constexpr int64_t kTile = 16;   // rows, and outputs
constexpr int64_t kBytes = 64;  // of a tile's row

// Linux saves tiles for processes that have asked.
bool here() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!allowed(kAmx.name) || !has_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool tiles = (d >> 24 & 1) != 0, int8 = (d >> 25 & 1) != 0;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return tiles && int8 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Levels lie as tiles read them, [rows / 16, inputs / 64, 16, 64].
AVX512 float quantize(const float* x, int64_t n, int64_t depth, int64_t row, void* quantised) {
  auto* first = static_cast<char*>(quantised) + row / kTile * kTile * depth + row % kTile * kBytes;
  return quantize_bytes(x, n, first, kTile * kBytes, '\0');
}

struct alignas(64) Config {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
  Config() {
    for (int i = 0; i < 8; ++i) bytes[i] = kBytes, rows[i] = kTile;
  }
};

// Ask for the tile that will be needed next: loads of tiles wait for each other.
inline void fetch(const int8_t* tile) {
  for (int64_t i = 0; i < kTile; ++i) __builtin_prefetch(tile + i * kBytes);
}

// Two tiles side by side, or the left one alone.
AMX void write_tiles(const Int8Product& p, const int32_t (*sums)[kTile * kPanel], int64_t row, int64_t output) {
  const int64_t rows = std::min(kTile, p.rows - row), wanted = p.outputs - output;
  const __mmask16 in_left = below(wanted), in_right = wanted > kPanel ? below(wanted - kPanel) : 0;
  const __m512 scale = _mm512_loadu_ps(p.scale + output), bias = _mm512_loadu_ps(p.bias + output);
  const __m512 right_scale = _mm512_maskz_loadu_ps(in_right, p.scale + output + kPanel);
  const __m512 right_bias = _mm512_maskz_loadu_ps(in_right, p.bias + output + kPanel);
  float* y = p.y + row * p.stride + output;
  for (int64_t i = 0; i < rows; ++i, y += p.stride) {
    const __m512 row_scale = _mm512_set1_ps(p.row_scales[row + i]);
    const __m512 left = _mm512_cvtepi32_ps(_mm512_load_si512(sums[0] + i * kPanel));
    const __m512 right = _mm512_cvtepi32_ps(_mm512_load_si512(sums[1] + i * kPanel));
    _mm512_mask_storeu_ps(y, in_left, _mm512_add_ps(_mm512_mul_ps(_mm512_mul_ps(left, row_scale), scale), bias));
    _mm512_mask_storeu_ps(y + kPanel, in_right,
                          _mm512_add_ps(_mm512_mul_ps(_mm512_mul_ps(right, row_scale), right_scale), right_bias));
  }
}

// Tiles 0 to 3 hold sums, 4 and 5 rows, 6 and 7 weights.
AMX void multiply(const Int8Product& p) {
  static const Config config;
  alignas(64) int32_t sums[4][kTile * kPanel];
  const auto* quantised = static_cast<const int8_t*>(p.quantised);
  _tile_loadconfig(&config);
  for (int64_t row = 0; row < p.rows; row += 2 * kTile) {
    const bool two_rows = row + kTile < p.rows;
    const int8_t* upper = quantised + row * p.depth;
    const int8_t* lower = upper + kTile * p.depth;
    for (int64_t panel = 0; panel < p.panels; panel += 2) {
      const int8_t* left = p.weights + panel * p.depth * kPanel;
      const int8_t* right = panel + 1 < p.panels ? left + p.depth * kPanel : left;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t k = 0; k < p.depth; k += kBytes) {
        _tile_loadd(4, upper + k * kTile, kBytes);
        _tile_loadd(6, left + k * kPanel, kBytes);
        _tile_loadd(7, right + k * kPanel, kBytes);
        fetch(left + (k + kBytes) * kPanel);
        fetch(right + (k + kBytes) * kPanel);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        if (two_rows) {
          _tile_loadd(5, lower + k * kTile, kBytes);
          _tile_dpbssd(2, 5, 6);
          _tile_dpbssd(3, 5, 7);
        }
      }
      _tile_stored(0, sums[0], kBytes);
      _tile_stored(1, sums[1], kBytes);
      _tile_stored(2, sums[2], kBytes);
      _tile_stored(3, sums[3], kBytes);
      write_tiles(p, sums, row, panel * kPanel);
      if (two_rows) write_tiles(p, sums + 2, row + kTile, panel * kPanel);
    }
  }
  _tile_release();
}

}  // namespace

const Int8Kernel kAmx = {"amx-int8", 4, kBytes, 2 * kTile, 1, here, quantize, multiply};

}  // namespace coda
#elif CODA_X86
namespace coda {
const Int8Kernel kAmx = {"amx-int8", 4, 64, 32, 1, [] { return false; }, nullptr, nullptr};
}
#endif
