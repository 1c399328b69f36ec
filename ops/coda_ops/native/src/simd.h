// What this processor has, and loops for it.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define CODA_X86 1

#include <cstdlib>
#include <cstring>
#include <iterator>

namespace coda {

// What the environment's CODA_ISA may name: this process makes do with that and what stands before it, to measure or test
// what another machine would get.
constexpr const char* kIsas[] = {"baseline", "avx2", "avx-vnni", "avx512", "avx512-vnni", "amx-int8"};

inline size_t isa_rank(const char* name) {
  size_t rank = 0;
  while (rank < std::size(kIsas) && std::strcmp(kIsas[rank], name) != 0) ++rank;
  return rank;
}

inline bool allowed(const char* isa) {
  const char* most = std::getenv("CODA_ISA");
  return most == nullptr || isa_rank(isa) <= isa_rank(most);
}

inline bool has_avx2() {
  return allowed("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

inline bool has_avx512() {
  return allowed("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
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
