// The rest of the CUDA runtime: devices, and the kernels that PyTorch's libraries bring along.
#include "device.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

using namespace null_cuda;

namespace {

// Kernels by the address of the function that launches them on the host.
std::map<const void *, const char *> &kernels() {
  static auto *it = new std::map<const void *, const char *>;
  return *it;
}

const char *name_of(const void *function) {
  Lock lock(mutex());
  auto kernel = kernels().find(function);
  return kernel == kernels().end() ? "a kernel without a name" : kernel->second;
}

struct Configuration {
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
};

thread_local std::vector<Configuration> configurations;

}  // namespace

int null_cuda::attribute_of_device(int attribute) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return 9;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return 0;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return 132;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: return 2147483647;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y: return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 48 << 10;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return 227 << 10;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return 228 << 10;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: return 65536;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return 65536;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return 2048;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: return 32;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return 1980000;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return 2619000;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return 5120;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return 50 << 20;
    case CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT: return 512;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: return 1;
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH: return 1;
    default: return 0;
  }
}

// Devices

ENTRY cudaError_t cudaGetDeviceCount(int *count) {
  *count = device_count();
  return cudaSuccess;
}

ENTRY cudaError_t cudaGetDevice(int *device) {
  *device = current_device;
  return cudaSuccess;
}

ENTRY cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count()) return fail(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

ENTRY cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
  *value = attribute_of_device(attribute);
  return cudaSuccess;
}

ENTRY cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
  size_t free;
  memset(properties, 0, sizeof *properties);
  snprintf(properties->name, sizeof properties->name, "null CUDA, sizes of an H100");
  cudaMemGetInfo(&free, &properties->totalGlobalMem);
  const auto set = [](auto &field, int attribute) {
    field = static_cast<std::decay_t<decltype(field)>>(attribute_of_device(attribute));
  };
  set(properties->major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
  set(properties->minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  set(properties->multiProcessorCount, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  set(properties->warpSize, CU_DEVICE_ATTRIBUTE_WARP_SIZE);
  set(properties->maxThreadsPerBlock, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
  set(properties->maxThreadsDim[0], CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X);
  set(properties->maxThreadsDim[1], CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y);
  set(properties->maxThreadsDim[2], CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z);
  set(properties->maxGridSize[0], CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X);
  set(properties->maxGridSize[1], CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y);
  set(properties->maxGridSize[2], CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z);
  set(properties->sharedMemPerBlock, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK);
  set(properties->sharedMemPerBlockOptin, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
  set(properties->sharedMemPerMultiprocessor, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR);
  set(properties->regsPerBlock, CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK);
  set(properties->regsPerMultiprocessor, CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR);
  set(properties->maxThreadsPerMultiProcessor, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR);
  set(properties->maxBlocksPerMultiProcessor, CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR);
  set(properties->memoryBusWidth, CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH);
  set(properties->l2CacheSize, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
  set(properties->textureAlignment, CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT);
  properties->pciBusID = device;
  return cudaSuccess;
}

ENTRY cudaError_t cudaDeviceGetPCIBusId(char *text, int length, int device) {
  snprintf(text, static_cast<size_t>(length), "0000:%02x:00.0", device);
  return cudaSuccess;
}

ENTRY cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) {
  *can = 1;
  return cudaSuccess;
}

ENTRY cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

ENTRY cudaError_t cudaDriverGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

ENTRY cudaError_t cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }

ENTRY const char *cudaGetErrorName(cudaError_t error) {
  return keep("CUDA error " + std::to_string(static_cast<int>(error)));
}

ENTRY const char *cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureUnjoined: return "capturing stream has unjoined work";
    case cudaErrorStreamCaptureIsolation: return "dependency created on uncaptured work in another stream";
    default: return cudaGetErrorName(error);
  }
}

ENTRY cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned, unsigned long long,
                                                   cudaDriverEntryPointQueryResult *result) {
  *function = dlsym(RTLD_DEFAULT, symbol);
  if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

ACCEPTS(cudaError_t, cudaDeviceEnablePeerAccess, (int, unsigned))
ACCEPTS(cudaError_t, cudaProfilerStart, ())
ACCEPTS(cudaError_t, cudaProfilerStop, ())

// Kernels: how a library that the CUDA compiler made says what it has, and starts it

ENTRY void **__cudaRegisterFatBinary(void *) {
  static void *nothing;
  return &nothing;
}

ENTRY void __cudaRegisterFatBinaryEnd(void **) {}

ENTRY void __cudaUnregisterFatBinary(void **) {}

ENTRY void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}

ENTRY void __cudaRegisterFunction(void **, const char *function, char *, const char *name, int, uint3 *, uint3 *,
                                  dim3 *, dim3 *, int *) {
  Lock lock(mutex());
  kernels()[function] = name;
}

ENTRY unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, CUstream_st *stream) {
  configurations.push_back({grid, block, shared_bytes, stream});
  return 0;
}

ENTRY cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared_bytes, void *stream) {
  const Configuration last = configurations.back();
  configurations.pop_back();
  *grid = last.grid;
  *block = last.block;
  *shared_bytes = last.shared_bytes;
  *static_cast<cudaStream_t *>(stream) = last.stream;
  return cudaSuccess;
}

ENTRY cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void *>(function));
  return cudaSuccess;
}

ENTRY cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **, size_t shared_bytes,
                                     cudaStream_t stream) {
  return launch(name_of(kernel), grid, block, shared_bytes, stream);
}

ENTRY cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **, size_t shared_bytes,
                                   cudaStream_t stream) {
  return launch(name_of(function), grid, block, shared_bytes, stream);
}

ENTRY cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **) {
  return launch(name_of(function), config->gridDim, config->blockDim, config->dynamicSmemBytes, config->stream);
}

ENTRY cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *, cudaJitOption *, void **, unsigned,
                                      cudaLibraryOption *, void **, unsigned) {
  LEAVE_ON_ERROR(refuse_unsafe("cudaLibraryLoadData"));
  note(Kind::module, "cudaLibraryLoadData");
  *library = reinterpret_cast<cudaLibrary_t>(1);
  return cudaSuccess;
}

ENTRY cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t, const char *name) {
  Lock lock(mutex());
  const char *kept = keep(name);
  kernels()[kept] = kept;
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<char *>(kept));
  return cudaSuccess;
}

ENTRY cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *) {
  memset(attributes, 0, sizeof *attributes);
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  attributes->ptxVersion = attributes->binaryVersion = 90;
  attributes->maxDynamicSharedSizeBytes = attribute_of_device(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK);
  return cudaSuccess;
}

ENTRY cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *, int threads, size_t,
                                                                         unsigned) {
  const int most = attribute_of_device(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR);
  *blocks = std::clamp(most / std::max(threads, 1), 1, 16);
  return cudaSuccess;
}

ENTRY cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function, int threads,
                                                                size_t shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared_bytes, 0);
}

ENTRY cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) {
  *address = const_cast<void *>(symbol);
  return cudaSuccess;
}

ACCEPTS(cudaError_t, cudaLibraryUnload, (cudaLibrary_t))
ACCEPTS(cudaError_t, cudaFuncSetAttribute, (const void *, cudaFuncAttribute, int))
ACCEPTS(cudaError_t, cudaKernelSetAttributeForDevice, (cudaKernel_t, cudaFuncAttribute, int, int))
