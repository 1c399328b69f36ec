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
  return allowed("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}

inline bool has_avx512() {
  return allowed("avx512") && has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd");
}

// The best of a function's three forms that this process may run.
template <typename Function>
Function* best(Function* v4, Function* v3, Function* plain) {
  return has_avx512() ? v4 : has_avx2() ? v3 : plain;
}

}  // namespace coda
#endif

// The function `name` of the inlined loop `name_inline`, compiled once for each generation of x86 that matters; the first call
// picks. The loader would pick as well, and could not be told of a lesser machine. Elsewhere the compiler's own target is
// used.
#if CODA_X86
#define CODA_SIMD(result, name, parameters, arguments)                                                             \
  __attribute__((target("arch=x86-64-v4"))) static result name##_v4 parameters { return name##_inline arguments; } \
  __attribute__((target("arch=x86-64-v3"))) static result name##_v3 parameters { return name##_inline arguments; } \
  static result name##_plain parameters { return name##_inline arguments; }                                        \
  result name parameters {                                                                                         \
    static result(*const chosen) parameters = best<result parameters>(name##_v4, name##_v3, name##_plain);         \
    return chosen arguments;                                                                                       \
  }
#else
#define CODA_SIMD(result, name, parameters, arguments) \
  result name parameters { return name##_inline arguments; }
#endif
