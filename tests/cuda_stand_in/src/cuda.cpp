// libcuda.so.1, the driver: what programs ask it before they load the runtime; all else goes through the runtime.
#include <cuda_runtime_api.h>

#include <cstdio>

constexpr int kInvalidDevice = 101, kComputeCapabilityMajor = 75, kComputeCapabilityMinor = 76;

extern "C" {

int cuTensorMapEncodeTiled() { return 0; }

// An old driver starts: only the runtime refuses it.
int cuInit(unsigned) {
  int driver = 0, devices = 0;
  cudaDriverGetVersion(&driver);
  if (driver == 0) return cudaErrorNoDevice;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  return error == cudaErrorInsufficientDriver ? cudaSuccess : error;
}

int cuDriverGetVersion(int* version) { return cudaDriverGetVersion(version); }

int cuDeviceGetCount(int* count) { return cudaGetDeviceCount(count); }

int cuDeviceGet(int* device, int ordinal) {
  int devices = 0;
  cudaGetDeviceCount(&devices);
  *device = ordinal;
  return ordinal >= 0 && ordinal < devices ? cudaSuccess : kInvalidDevice;
}

int cuDeviceGetName(char* name, int length, int device) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, device);
  if (error == cudaSuccess) std::snprintf(name, length, "%s", properties.name);
  return error;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  if (attribute != kComputeCapabilityMajor && attribute != kComputeCapabilityMinor) return cudaErrorInvalidValue;
  return cudaDeviceGetAttribute(value, static_cast<cudaDeviceAttr>(attribute), device);
}

}  // extern "C"
