// cuDNN by its backend API, which PyTorch uses for every convolution: a plan is built for each new kind of one (with
// the search for the fastest, it is also run), then executed.
#include "device.hpp"

#include <cudnn_graph.h>

using namespace null_cuda;

namespace {

struct Handle {
  cudaStream_t stream;
};

Handle *of(cudnnHandle_t handle) { return reinterpret_cast<Handle *>(handle); }

struct Descriptor {
  cudnnBackendDescriptorType_t type;
};

constexpr int64_t PLANS_OFFERED = 1;  // for each kind of convolution; a real cuDNN offers a dozen

}  // namespace

ENTRY size_t cudnnGetVersion() { return CUDNN_VERSION; }

ENTRY cudnnStatus_t cudnnGetProperty(libraryPropertyType property, int *value) {
  *value = property == MAJOR_VERSION ? CUDNN_MAJOR : property == MINOR_VERSION ? CUDNN_MINOR : CUDNN_PATCHLEVEL;
  return CUDNN_STATUS_SUCCESS;
}

ENTRY size_t cudnnGetCudartVersion() { return CUDART_VERSION; }

ENTRY const char *cudnnGetErrorString(cudnnStatus_t) { return "an error of the null CUDA"; }

ENTRY void cudnnGetLastErrorString(char *text, size_t length) {
  if (length) *text = '\0';
}

ENTRY cudnnStatus_t cudnnCreate(cudnnHandle_t *handle) {
  if (refuse_unsafe("cudnnCreate") != cudaSuccess) return CUDNN_STATUS_INTERNAL_ERROR;
  *handle = reinterpret_cast<cudnnHandle_t>(new Handle{nullptr});
  return CUDNN_STATUS_SUCCESS;
}

ENTRY cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
  delete of(handle);
  return CUDNN_STATUS_SUCCESS;
}

ENTRY cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  of(handle)->stream = stream;
  return CUDNN_STATUS_SUCCESS;
}

ENTRY cudnnStatus_t cudnnGetStream(cudnnHandle_t handle, cudaStream_t *stream) {
  *stream = of(handle)->stream;
  return CUDNN_STATUS_SUCCESS;
}

ENTRY cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                                 cudnnBackendDescriptor_t *descriptor) {
  *descriptor = new Descriptor{type};
  return CUDNN_STATUS_SUCCESS;
}

ENTRY cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
  delete static_cast<Descriptor *>(descriptor);
  return CUDNN_STATUS_SUCCESS;
}

ENTRY cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
  if (static_cast<Descriptor *>(descriptor)->type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)
    note(Kind::plan, "cudnn plan");
  return CUDNN_STATUS_SUCCESS;
}

ACCEPTS(cudnnStatus_t, cudnnBackendSetAttribute,
        (cudnnBackendDescriptor_t, cudnnBackendAttributeName_t, cudnnBackendAttributeType_t, int64_t, const void *))

ENTRY cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t const, cudnnBackendAttributeName_t attribute,
                                             cudnnBackendAttributeType_t, int64_t, int64_t *count, void *values) {
  const auto answer = [&](int64_t value) {
    if (values) *static_cast<int64_t *>(values) = value;
    if (count) *count = 1;
  };
  if (count) *count = 0;
  switch (attribute) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS:  // the caller brings the descriptors along
      if (count) *count = PLANS_OFFERED;
      break;
    case CUDNN_ATTR_ENGINECFG_ENGINE:
      if (count) *count = 1;
      break;
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE: answer(0); break;
    case CUDNN_ATTR_ENGINE_GLOBAL_INDEX: answer(1); break;
    case CUDNN_ATTR_OPERATIONGRAPH_ENGINE_GLOBAL_COUNT: answer(1); break;
    default: break;
  }
  return CUDNN_STATUS_SUCCESS;
}

ENTRY cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t, cudnnBackendDescriptor_t) {
  return work(Kind::convolution, "cudnnBackendExecute", of(handle)->stream) == cudaSuccess
             ? CUDNN_STATUS_SUCCESS
             : CUDNN_STATUS_EXECUTION_FAILED;
}
