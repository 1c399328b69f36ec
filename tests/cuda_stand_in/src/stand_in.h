// What every library of the stand-in shares. libcudart.so.13 holds it; the others are linked with that.
#pragma once
#include <cstddef>

// Adds a line to the log, where CUDA_STAND_IN_LOG names one.
//   event: "kernel", "cublas", "cudnn", "copy", "memset", "graph launch", ...: see README.md
//   size: blocks of a kernel, bytes of a copy, nodes of a graph
extern "C" void stand_in_log(const char* event, const char* name, size_t size);

// A library's functions by what they do; LIBRARY is how the log names what computes.
#define COMPUTES(name) \
  int name() { stand_in_log(LIBRARY, #name, 0); return 0; }
#define ACCEPTS(name) \
  int name() { return 0; }
#define CREATES(name) \
  int name(void** made) { *made = new char; return 0; }
#define DESTROYS(name) \
  int name(void* made) { delete static_cast<char*>(made); return 0; }
