// Streams, events and graphs. Work is done when it is asked for, so there is nothing to wait for.
#include "cudart.h"

using namespace stand_in;

namespace stand_in {
std::atomic<Capture*> capture{nullptr};
}

namespace {

struct Graph {
  size_t nodes;
};

template <class Handle>
cudaError_t made(Handle* handle) {
  return call([&] { *handle = reinterpret_cast<Handle>(new char); return cudaSuccess; });
}

template <class Handle>
cudaError_t destroyed(Handle handle) {
  delete reinterpret_cast<char*>(handle);
  return cudaSuccess;
}

bool captured(cudaStream_t stream) {
  const Capture* current = capture;
  return current && current->stream == stream;
}

}  // namespace

extern "C" {

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return made(stream); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return made(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return destroyed(stream); }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return call([] { return cudaSuccess; }); }

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const auto wait = [] { log("synchronise", "stream", 0); return cudaSuccess; };
  return captured(stream) ? call_outside_capture("cudaStreamSynchronize", wait) : call(wait);
}

cudaError_t cudaDeviceSynchronize() {
  return call_outside_capture("cudaDeviceSynchronize", [] { log("synchronise", "device", 0); return cudaSuccess; });
}

cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void* data) {
  return call([&] { log("host function", "", 0); function(data); return cudaSuccess; });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) { return made(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return made(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return destroyed(event); }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return call([] { return cudaSuccess; }); }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t, cudaStream_t, unsigned) { return call([] { return cudaSuccess; }); }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return call([] { log("synchronise", "event", 0); return cudaSuccess; }); }

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  return call([&] { *milliseconds = 0.001f; return cudaSuccess; });
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  return call_outside_capture("cudaStreamBeginCapture", [&] {
    log("capture begins", "", 0);
    capture = new Capture{stream, 0, false};
    return cudaSuccess;
  });
}

cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  return call([&] {
    *graph = nullptr;
    Capture* ended = capture.exchange(nullptr);
    if (!ended) return cudaErrorInvalidValue;
    const bool invalid = ended->invalid;
    log(invalid ? "capture fails" : "capture ends", "", ended->nodes);
    if (!invalid) *graph = reinterpret_cast<cudaGraph_t>(new Graph{ended->nodes});
    delete ended;
    return invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return call([&] {
    *status = captured(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  return call([&] {
    *executable = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph*>(graph)));
    return cudaSuccess;
  });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t) {
  return call([&] { log("graph launch", "", reinterpret_cast<Graph*>(executable)->nodes); return cudaSuccess; });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<Graph*>(graph);
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete reinterpret_cast<Graph*>(executable);
  return cudaSuccess;
}

}  // extern "C"
