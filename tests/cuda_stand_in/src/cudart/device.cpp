// The card: what it is called, what it can do, and whether there is one.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cudart.h"

namespace stand_in {

static std::string setting(const char* name, const char* otherwise) {
  const char* value = std::getenv((std::string("CUDA_STAND_IN_") + name).c_str());
  return value ? value : otherwise;
}

static Card described() {
  Card made;
  made.devices = std::stoi(setting("DEVICES", "1"));
  made.driver = std::stoi(setting("DRIVER", "13000"));
  made.name = setting("NAME", "Stand-in H100");
  made.multiprocessors = std::stoi(setting("MULTIPROCESSORS", "132"));
  made.memory = std::stoull(setting("MEMORY", "85899345920"));
  const std::string capability = setting("CAPABILITY", "9.0");
  if (std::sscanf(capability.c_str(), "%d.%d", &made.major, &made.minor) != 2) {
    std::fprintf(stderr, "CUDA_STAND_IN_CAPABILITY is %s: write it like 9.0\n", capability.c_str());
    std::abort();
  }
  return made;
}

const Card& card() {
  static const Card made = described();
  return made;
}

cudaError_t unavailable() {
  if (card().driver < CUDART_VERSION / 1000 * 1000) return cudaErrorInsufficientDriver;
  return card().devices == 0 ? cudaErrorNoDevice : cudaSuccess;
}

thread_local cudaError_t last_error = cudaSuccess;
static thread_local int device = 0;

// Of an H100, but for what the environment says.
static cudaDeviceProp properties() {
  cudaDeviceProp made;
  std::memset(&made, 0, sizeof made);
  std::strncpy(made.name, card().name.c_str(), sizeof made.name - 1);
  made.major = card().major;
  made.minor = card().minor;
  made.multiProcessorCount = card().multiprocessors;
  made.totalGlobalMem = card().memory;
  made.warpSize = 32;
  made.maxThreadsPerBlock = 1024;
  made.maxThreadsDim[0] = made.maxThreadsDim[1] = 1024;
  made.maxThreadsDim[2] = 64;
  made.maxGridSize[0] = 2147483647;
  made.maxGridSize[1] = made.maxGridSize[2] = 65535;
  made.maxThreadsPerMultiProcessor = 2048;
  made.maxBlocksPerMultiProcessor = 32;
  made.regsPerBlock = made.regsPerMultiprocessor = 65536;
  made.sharedMemPerBlock = 49152;
  made.sharedMemPerBlockOptin = 232448;
  made.sharedMemPerMultiprocessor = 233472;
  made.reservedSharedMemPerBlock = 1024;
  made.totalConstMem = 65536;
  made.l2CacheSize = 50 << 20;
  made.memoryBusWidth = 5120;
  made.asyncEngineCount = 3;
  made.unifiedAddressing = made.managedMemory = made.concurrentKernels = made.cooperativeLaunch = 1;
  made.memoryPoolsSupported = made.clusterLaunch = 1;
  return made;
}

}  // namespace stand_in

using namespace stand_in;

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  return call([&] { *count = card().devices; return cudaSuccess; });
}

cudaError_t cudaGetDevice(int* chosen) {
  return call([&] { *chosen = device; return cudaSuccess; });
}

cudaError_t cudaSetDevice(int chosen) {
  return call([&] {
    if (chosen < 0 || chosen >= card().devices) return cudaErrorInvalidDevice;
    device = chosen;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* made, int asked) {
  return call([&] {
    if (asked < 0 || asked >= card().devices) return cudaErrorInvalidDevice;
    *made = properties();
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  return call([&] {
    const cudaDeviceProp made = properties();
    switch (attribute) {
      case cudaDevAttrMaxThreadsPerBlock: *value = made.maxThreadsPerBlock; break;
      case cudaDevAttrMaxGridDimX: *value = made.maxGridSize[0]; break;
      case cudaDevAttrMaxGridDimY: *value = made.maxGridSize[1]; break;
      case cudaDevAttrMaxGridDimZ: *value = made.maxGridSize[2]; break;
      case cudaDevAttrWarpSize: *value = made.warpSize; break;
      case cudaDevAttrComputeCapabilityMajor: *value = made.major; break;
      case cudaDevAttrComputeCapabilityMinor: *value = made.minor; break;
      case cudaDevAttrMultiProcessorCount: *value = made.multiProcessorCount; break;
      case cudaDevAttrMaxThreadsPerMultiProcessor: *value = made.maxThreadsPerMultiProcessor; break;
      case cudaDevAttrMaxBlocksPerMultiprocessor: *value = made.maxBlocksPerMultiProcessor; break;
      case cudaDevAttrMaxRegistersPerBlock: *value = made.regsPerBlock; break;
      case cudaDevAttrMaxRegistersPerMultiprocessor: *value = made.regsPerMultiprocessor; break;
      case cudaDevAttrMaxSharedMemoryPerBlock: *value = static_cast<int>(made.sharedMemPerBlock); break;
      case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(made.sharedMemPerBlockOptin); break;
      case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = static_cast<int>(made.sharedMemPerMultiprocessor); break;
      case cudaDevAttrReservedSharedMemoryPerBlock: *value = static_cast<int>(made.reservedSharedMemPerBlock); break;
      case cudaDevAttrL2CacheSize: *value = made.l2CacheSize; break;
      case cudaDevAttrMemoryPoolsSupported: *value = made.memoryPoolsSupported; break;
      case cudaDevAttrCooperativeLaunch: *value = made.cooperativeLaunch; break;
      case cudaDevAttrIntegrated: *value = made.integrated; break;
      default:
        log("unknown attribute", std::to_string(attribute), 0);
        return cudaErrorInvalidValue;
    }
    return cudaSuccess;
  });
}

cudaError_t cudaDriverGetVersion(int* version) { *version = card().driver; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { *version = CUDART_VERSION; return cudaSuccess; }

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorNoKernelImageForDevice: return "cudaErrorNoKernelImageForDevice";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
    default: return "unrecognized error code";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
    default: return "unrecognized error code";
  }
}

// Nothing of the driver is found through here: who asks goes without.
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** found, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  log("driver function", symbol, 0);
  *found = nullptr;
  if (result) *result = cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

}  // extern "C"
