// Loops marked CODA_SIMD are compiled once for each level of x86 that matters, and the loader picks; elsewhere the
// compiler's own target is used.
#pragma once

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define CODA_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CODA_SIMD
#endif
