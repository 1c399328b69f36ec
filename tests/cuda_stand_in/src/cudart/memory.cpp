// Device memory is host memory, zero until something is copied into it. What it takes is counted against the card's.
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <mutex>

#include "cudart.h"

using namespace stand_in;

namespace {

struct Block {
  size_t bytes;
  cudaMemoryType type;
};
std::map<const char*, Block> blocks;  // by address
size_t used = 0;                      // bytes on the device
std::mutex guard;

cudaError_t allocate(void** made, size_t bytes, cudaMemoryType type) {
  std::lock_guard<std::mutex> lock(guard);
  *made = nullptr;
  if (bytes == 0) return cudaSuccess;
  const bool on_device = type == cudaMemoryTypeDevice;
  if (on_device && (bytes > card().memory || used > card().memory - bytes)) {
    log("out of memory", "device", bytes);
    return cudaErrorMemoryAllocation;
  }
  // Pages of an anonymous mapping are zero and cost nothing before they are written.
  void* place = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (place == MAP_FAILED) return cudaErrorMemoryAllocation;
  blocks[static_cast<char*>(place)] = {bytes, type};
  if (on_device) used += bytes;
  log("allocate", on_device ? "device" : "pinned", bytes);
  *made = place;
  return cudaSuccess;
}

cudaError_t release(void* place) {
  std::lock_guard<std::mutex> lock(guard);
  if (!place) return cudaSuccess;
  const auto found = blocks.find(static_cast<char*>(place));
  if (found == blocks.end()) return cudaErrorInvalidValue;
  const Block block = found->second;
  const bool on_device = block.type == cudaMemoryTypeDevice;
  if (on_device) used -= block.bytes;
  log("free", on_device ? "device" : "pinned", block.bytes);
  blocks.erase(found);
  munmap(place, block.bytes);
  return cudaSuccess;
}

const char* direction(cudaMemcpyKind kind) {
  switch (kind) {
    case cudaMemcpyHostToDevice: return "host to device";
    case cudaMemcpyDeviceToHost: return "device to host";
    case cudaMemcpyDeviceToDevice: return "device to device";
    default: return "other";
  }
}

// Work for the device that the host does at once.
void noted(const char* event, const char* name, size_t bytes) {
  if (Capture* current = capture) ++current->nodes;
  log(event, name, bytes);
}

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** made, size_t bytes) {
  return call_outside_capture("cudaMalloc", [&] { return allocate(made, bytes, cudaMemoryTypeDevice); });
}

cudaError_t cudaMallocFromPoolAsync(void** made, size_t bytes, cudaMemPool_t, cudaStream_t) {
  return call([&] { return allocate(made, bytes, cudaMemoryTypeDevice); });
}

cudaError_t cudaMallocHost(void** made, size_t bytes) {
  return call_outside_capture("cudaMallocHost", [&] { return allocate(made, bytes, cudaMemoryTypeHost); });
}

cudaError_t cudaHostAlloc(void** made, size_t bytes, unsigned) {
  return call_outside_capture("cudaHostAlloc", [&] { return allocate(made, bytes, cudaMemoryTypeHost); });
}

cudaError_t cudaFree(void* place) {
  return call_outside_capture("cudaFree", [&] { return release(place); });
}

cudaError_t cudaFreeHost(void* place) {
  return call_outside_capture("cudaFreeHost", [&] { return release(place); });
}

cudaError_t cudaFreeAsync(void* place, cudaStream_t) {
  return call([&] { return release(place); });
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  return call([&] {
    std::lock_guard<std::mutex> lock(guard);
    *total = card().memory;
    *free = card().memory - used;
    return cudaSuccess;
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* place) {
  return call([&] {
    std::lock_guard<std::mutex> lock(guard);
    std::memset(found, 0, sizeof *found);
    const char* address = static_cast<const char*>(place);
    auto after = blocks.upper_bound(address);
    const bool inside = after != blocks.begin() && address < (--after)->first + after->second.bytes;
    found->type = inside ? after->second.type : cudaMemoryTypeUnregistered;
    if (inside) found->devicePointer = const_cast<char*>(address);
    if (found->type != cudaMemoryTypeDevice) found->hostPointer = const_cast<char*>(address);
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return call_outside_capture("cudaMemcpy", [&] {
    noted("copy", direction(kind), bytes);
    std::memmove(to, from, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return call([&] {
    noted("copy", direction(kind), bytes);
    std::memmove(to, from, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                              cudaMemcpyKind kind, cudaStream_t) {
  return call([&] {
    noted("copy", direction(kind), width * height);
    for (size_t row = 0; row < height; ++row)
      std::memmove(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width);
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpyFromSymbol(void* to, const void*, size_t bytes, size_t, cudaMemcpyKind kind) {
  return call_outside_capture("cudaMemcpyFromSymbol", [&] {
    noted("copy", direction(kind), bytes);
    std::memset(to, 0, bytes);  // no code that runs has set it
    return cudaSuccess;
  });
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return call_outside_capture("cudaMemset", [&] {
    noted("memset", "", bytes);
    std::memset(to, value, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return call([&] {
    noted("memset", "", bytes);
    std::memset(to, value, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t* made, const cudaMemPoolProps*) {
  return call([&] { *made = reinterpret_cast<cudaMemPool_t>(new char); return cudaSuccess; });
}

cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
  delete reinterpret_cast<char*>(pool);
  return cudaSuccess;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void* value) {
  return call([&] { std::memset(value, 0, sizeof(unsigned long long)); return cudaSuccess; });
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }

}  // extern "C"
