// What the files of libcudart.so.13 share: the card that is described, errors, and the capture under way.
#pragma once
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <string>

#include "../stand_in.h"

namespace stand_in {

// The card, from the environment: README.md lists the variables.
struct Card {
  int devices;
  int driver;  // as cudaDriverGetVersion writes it: 13000 is 13.0; 0 where there is no driver
  std::string name;
  int major, minor;
  int multiprocessors;
  size_t memory;  // bytes
};
const Card& card();

// The error of every call where the environment describes a machine that cannot run, or cudaSuccess.
cudaError_t unavailable();
extern thread_local cudaError_t last_error;

// One stream is captured at a time.
struct Capture {
  cudaStream_t stream;
  size_t nodes;
  bool invalid;
};
extern std::atomic<Capture*> capture;

// Runs a call, and remembers its error until it is asked for.
template <class Body>
cudaError_t call(Body body) {
  cudaError_t error = unavailable();
  if (error == cudaSuccess) error = body();
  if (error != cudaSuccess) last_error = error;
  return error;
}

// Runs a call that no thread may make while a stream is captured (cudaStreamCaptureModeGlobal).
template <class Body>
cudaError_t call_outside_capture(const char* name, Body body) {
  return call([&] {
    Capture* current = capture;
    if (!current) return body();
    current->invalid = true;
    stand_in_log("refused in capture", name, 0);
    return cudaErrorStreamCaptureUnsupported;
  });
}

// As stand_in_log, with more members of the JSON object: ', "key": value'.
void log(const char* event, const std::string& name, size_t size, const std::string& more = "");

}  // namespace stand_in
