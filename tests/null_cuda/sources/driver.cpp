// The CUDA driver, as far as PyTorch and Triton call it themselves. Its errors have the numbers of the runtime's.
#include "device.hpp"

using namespace null_cuda;

// A context is the number of its device, plus one.

ENTRY CUresult cuCtxGetCurrent(CUcontext *context) {
  *context = reinterpret_cast<CUcontext>(static_cast<size_t>(current_device) + 1);
  return CUDA_SUCCESS;
}

ENTRY CUresult cuCtxSetCurrent(CUcontext context) {
  if (context) current_device = static_cast<int>(reinterpret_cast<size_t>(context)) - 1;
  return CUDA_SUCCESS;
}

ENTRY CUresult cuCtxGetDevice(CUdevice *device) {
  *device = current_device;
  return CUDA_SUCCESS;
}

ENTRY CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  *context = reinterpret_cast<CUcontext>(static_cast<size_t>(device) + 1);
  return CUDA_SUCCESS;
}

ENTRY CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned *flags, int *is_active) {
  *flags = 0;
  *is_active = 1;
  return CUDA_SUCCESS;
}

ACCEPTS(CUresult, cuInit, (unsigned))
ACCEPTS(CUresult, cuCtxSetLimit, (CUlimit, size_t))

ENTRY CUresult cuCtxGetLimit(size_t *value, CUlimit) {
  *value = 0;
  return CUDA_SUCCESS;
}

ENTRY CUresult cuDriverGetVersion(int *version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

ENTRY CUresult cuDeviceGetCount(int *count) {
  *count = device_count();
  return CUDA_SUCCESS;
}

ENTRY CUresult cuDeviceGet(CUdevice *device, int number) {
  *device = number;
  return CUDA_SUCCESS;
}

ENTRY CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice) {
  *value = attribute_of_device(attribute);
  return CUDA_SUCCESS;
}

ENTRY CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = cudaGetErrorString(static_cast<cudaError_t>(error));
  return CUDA_SUCCESS;
}

ENTRY CUresult cuGetErrorName(CUresult error, const char **text) {
  *text = cudaGetErrorName(static_cast<cudaError_t>(error));
  return CUDA_SUCCESS;
}

ENTRY CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr address) {
  const Location location = locate(reinterpret_cast<const void *>(address));
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
      if (location.place != Place::device) return CUDA_ERROR_INVALID_VALUE;
      *static_cast<CUdeviceptr *>(value) = address;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      *static_cast<unsigned *>(value) =
          location.place == Place::device ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
      return CUDA_SUCCESS;
    default: return CUDA_ERROR_NOT_SUPPORTED;
  }
}

// Modules: a function is its name

ENTRY CUresult cuModuleLoadData(CUmodule *module, const void *) {
  if (refuse_unsafe("cuModuleLoadData") != cudaSuccess) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  note(Kind::module, "cuModuleLoadData");
  *module = reinterpret_cast<CUmodule>(1);
  return CUDA_SUCCESS;
}

ENTRY CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned, CUjit_option *, void **) {
  return cuModuleLoadData(module, image);
}

ENTRY CUresult cuModuleLoad(CUmodule *module, const char *) { return cuModuleLoadData(module, nullptr); }

ENTRY CUresult cuModuleGetFunction(CUfunction *function, CUmodule, const char *name) {
  *function = reinterpret_cast<CUfunction>(const_cast<char *>(keep(name)));
  return CUDA_SUCCESS;
}

ENTRY CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}

ENTRY CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction, int threads, size_t shared_bytes) {
  return static_cast<CUresult>(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, nullptr, threads, shared_bytes));
}

ENTRY CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction, const CUlaunchConfig *) {
  *clusters = 1;
  return CUDA_SUCCESS;
}

ACCEPTS(CUresult, cuModuleUnload, (CUmodule))
ACCEPTS(CUresult, cuFuncSetAttribute, (CUfunction, CUfunction_attribute, int))
ACCEPTS(CUresult, cuFuncSetCacheConfig, (CUfunction, CUfunc_cache))

// Launches

static CUresult launch_function(CUfunction function, dim3 grid, dim3 block, unsigned shared_bytes, CUstream stream) {
  const char *name = reinterpret_cast<const char *>(function);
  return static_cast<CUresult>(launch(name, grid, block, shared_bytes, stream));
}

ENTRY CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **, void **) {
  return launch_function(function, dim3(config->gridDimX, config->gridDimY, config->gridDimZ),
                         dim3(config->blockDimX, config->blockDimY, config->blockDimZ), config->sharedMemBytes,
                         config->hStream);
}

ENTRY CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                              unsigned block_y, unsigned block_z, unsigned shared_bytes, CUstream stream, void **,
                              void **) {
  return launch_function(function, dim3(grid_x, grid_y, grid_z), dim3(block_x, block_y, block_z), shared_bytes, stream);
}

ENTRY CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                         unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                                         CUstream stream, void **) {
  return launch_function(function, dim3(grid_x, grid_y, grid_z), dim3(block_x, block_y, block_z), shared_bytes, stream);
}
