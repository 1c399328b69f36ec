// Kernels are noted by name and not run. One whose library holds no code for the card is refused, as on the card.
#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "cudart.h"

using namespace stand_in;

namespace {

// What nvcc leaves in a library for each source file: code for several cards. Layouts as read from such libraries.
struct Wrapper {
  uint32_t magic, version;
  const char* image;
};
struct ImageHeader {
  uint32_t magic;
  uint16_t version, header_bytes;
  uint64_t bytes;
};
struct EntryHeader {
  uint16_t kind, version;
  uint32_t header_bytes;
  uint64_t bytes;
  uint8_t unread[12];
  uint32_t architecture;  // 90 for sm_90
};
constexpr uint32_t kImage = 0xBA55ED50;
constexpr uint16_t kPtx = 1;  // compiled for newer cards as well; machine code serves one major version

bool has_code(const char* image) {
  ImageHeader header;
  std::memcpy(&header, image, sizeof header);
  if (header.magic != kImage) return true;  // another form: nothing is claimed of it
  const uint32_t asked = card().major * 10 + card().minor;
  const char* place = image + header.header_bytes;
  for (const char* end = place + header.bytes; place < end;) {
    EntryHeader entry;
    std::memcpy(&entry, place, sizeof entry);
    const bool same = entry.kind == kPtx || entry.architecture / 10 == asked / 10;
    if (same && entry.architecture <= asked) return true;
    place += entry.header_bytes + entry.bytes;
  }
  return false;
}

struct Kernel {
  std::string name;  // mangled
  const char* image;
};
std::map<const void*, Kernel> kernels;
std::mutex guard;

std::string readable(const std::string& mangled) {
  int status = 0;
  char* text = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  std::string name = status == 0 ? text : mangled;
  std::free(text);
  return name;
}

// Where the code lies, ', "library": ..., "image": offset'.
std::string home(const char* image) {
  Dl_info found;
  if (!image || !dladdr(image, &found)) return "";
  const std::string path = found.dli_fname;
  const size_t offset = image - static_cast<const char*>(found.dli_fbase);
  return ", \"library\": \"" + path.substr(path.rfind('/') + 1) + "\", \"image\": " + std::to_string(offset);
}

cudaError_t launch(const void* function, dim3 grid) {
  return call([&] {
    std::lock_guard<std::mutex> lock(guard);
    const auto found = kernels.find(function);
    if (found == kernels.end()) return cudaErrorInvalidDeviceFunction;
    const Kernel& kernel = found->second;
    if (kernel.image && !has_code(kernel.image)) {
      log("no kernel image", readable(kernel.name), 0, home(kernel.image));
      return cudaErrorNoKernelImageForDevice;
    }
    if (Capture* current = capture) ++current->nodes;
    log("kernel", readable(kernel.name), size_t(grid.x) * grid.y * grid.z, home(kernel.image));
    return cudaSuccess;
  });
}

// The <<<...>>> of a launch, kept between two calls that nvcc writes.
struct Configuration {
  dim3 grid, block;
  size_t shared;
  void* stream;
};
thread_local Configuration configuration;

}  // namespace

extern "C" {

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3, void**, size_t, cudaStream_t) {
  return launch(function, grid);
}

cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3 grid, dim3, void**, size_t, cudaStream_t) {
  return launch(function, grid);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* launched, const void* function, void**) {
  return launch(function, launched->gridDim);
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3, void**, size_t, cudaStream_t) {
  return launch(kernel, grid);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void* function) {
  return call([&] {
    std::lock_guard<std::mutex> lock(guard);
    const auto kernel = kernels.find(function);
    if (kernel == kernels.end()) return cudaErrorInvalidDeviceFunction;
    if (kernel->second.image && !has_code(kernel->second.image)) return cudaErrorNoKernelImageForDevice;
    std::memset(found, 0, sizeof *found);
    found->maxThreadsPerBlock = 1024;
    found->numRegs = 32;
    found->binaryVersion = found->ptxVersion = card().major * 10 + card().minor;
    found->maxDynamicSharedSizeBytes = 232448;
    return cudaSuccess;
  });
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return call([] { return cudaSuccess; }); }

cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t, cudaFuncAttribute, int, int) {
  return call([] { return cudaSuccess; });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  return call([&] { *blocks = 2; return cudaSuccess; });
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t, unsigned) {
  return call([&] { *blocks = 2; return cudaSuccess; });
}

cudaError_t cudaLibraryLoadData(cudaLibrary_t* library, const void*, cudaJitOption*, void**, unsigned, cudaLibraryOption*,
                                void**, unsigned) {
  return call([&] { *library = reinterpret_cast<cudaLibrary_t>(new char); return cudaSuccess; });
}

cudaError_t cudaLibraryGetKernel(cudaKernel_t* kernel, cudaLibrary_t, const char* name) {
  return call([&] {
    std::lock_guard<std::mutex> lock(guard);
    *kernel = reinterpret_cast<cudaKernel_t>(new char);
    kernels[*kernel] = {name, nullptr};
    return cudaSuccess;
  });
}

cudaError_t cudaLibraryUnload(cudaLibrary_t library) {
  delete reinterpret_cast<char*>(library);
  return cudaSuccess;
}

// What nvcc writes into each library that holds kernels.

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  configuration = {grid, block, shared, stream};
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *static_cast<void**>(stream) = configuration.stream;
  return cudaSuccess;
}

void** __cudaRegisterFatBinary(void* wrapper) { return new void*(const_cast<char*>(static_cast<Wrapper*>(wrapper)->image)); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void** image) { delete image; }

void __cudaRegisterFunction(void** image, const char* function, char*, const char* name, int, void*, void*, void*, void*,
                            int*) {
  std::lock_guard<std::mutex> lock(guard);
  kernels[function] = {name, static_cast<char*>(*image)};
}

void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

}  // extern "C"
