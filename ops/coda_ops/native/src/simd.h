// What this processor has, and loops for it.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define CODA_X86 1

namespace coda {

inline bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

inline bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

}  // namespace coda
#endif

// Loops marked CODA_SIMD are compiled once for each level of x86 that matters, and the loader picks; elsewhere the
// compiler's own target is used.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define CODA_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CODA_SIMD
#endif
