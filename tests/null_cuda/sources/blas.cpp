// cuBLAS and cuBLASLt: every product is one piece of work, its amount the multiplications.
#include "device.hpp"

#include <cublasLt.h>
#include <cublas_api.h>

#include <cstring>

using namespace null_cuda;

namespace {

struct Handle {
  cudaStream_t stream;
  cublasMath_t math;
};

Handle *of(cublasHandle_t handle) { return reinterpret_cast<Handle *>(handle); }

struct Layout {
  unsigned long long rows, columns;
  int batch;
};

Layout *of(cublasLtMatrixLayout_t layout) { return reinterpret_cast<Layout *>(layout); }

cublasStatus_t multiply(const char *name, cudaStream_t stream, unsigned long long multiplications) {
  return work(Kind::product, name, stream, multiplications) == cudaSuccess ? CUBLAS_STATUS_SUCCESS
                                                                           : CUBLAS_STATUS_EXECUTION_FAILED;
}

unsigned long long volume(long long m, long long n, long long k, long long batch = 1) {
  return static_cast<unsigned long long>(m * n * k * batch);
}

}  // namespace

ENTRY cublasStatus_t cublasCreate_v2(cublasHandle_t *handle) {
  if (refuse_unsafe("cublasCreate") != cudaSuccess) return CUBLAS_STATUS_INTERNAL_ERROR;
  *handle = reinterpret_cast<cublasHandle_t>(new Handle{nullptr, CUBLAS_DEFAULT_MATH});
  return CUBLAS_STATUS_SUCCESS;
}

ENTRY cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
  delete of(handle);
  return CUBLAS_STATUS_SUCCESS;
}

ENTRY cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
  of(handle)->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}

ENTRY cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
  of(handle)->math = mode;
  return CUBLAS_STATUS_SUCCESS;
}

ENTRY cublasStatus_t cublasGetMathMode(cublasHandle_t handle, cublasMath_t *mode) {
  *mode = of(handle)->math;
  return CUBLAS_STATUS_SUCCESS;
}

ENTRY cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t, cublasPointerMode_t *mode) {
  *mode = CUBLAS_POINTER_MODE_HOST;
  return CUBLAS_STATUS_SUCCESS;
}

ACCEPTS(cublasStatus_t, cublasSetPointerMode_v2, (cublasHandle_t, cublasPointerMode_t))
ACCEPTS(cublasStatus_t, cublasSetWorkspace_v2, (cublasHandle_t, void *, size_t))
ACCEPTS(cublasStatus_t, cublasSetSmCountTarget, (cublasHandle_t, int))

ENTRY cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t, cublasOperation_t, int m, int n, int k,
                                  const void *, const void *, cudaDataType, int, const void *, cudaDataType, int,
                                  const void *, void *, cudaDataType, int, cublasComputeType_t, cublasGemmAlgo_t) {
  return multiply("cublasGemmEx", of(handle)->stream, volume(m, n, k));
}

ENTRY cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t, cublasOperation_t, int m,
                                                int n, int k, const void *, const void *, cudaDataType, int, long long,
                                                const void *, cudaDataType, int, long long, const void *, void *,
                                                cudaDataType, int, long long, int batch, cublasComputeType_t,
                                                cublasGemmAlgo_t) {
  return multiply("cublasGemmStridedBatchedEx", of(handle)->stream, volume(m, n, k, batch));
}

ENTRY cublasStatus_t cublasSgemm_v2(cublasHandle_t handle, cublasOperation_t, cublasOperation_t, int m, int n, int k,
                                    const float *, const float *, int, const float *, int, const float *, float *,
                                    int) {
  return multiply("cublasSgemm", of(handle)->stream, volume(m, n, k));
}

ENTRY cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t handle, cublasOperation_t, cublasOperation_t, int m,
                                               int n, int k, const float *, const float *, int, long long,
                                               const float *, int, long long, const float *, float *, int, long long,
                                               int batch) {
  return multiply("cublasSgemmStridedBatched", of(handle)->stream, volume(m, n, k, batch));
}

ENTRY cublasStatus_t cublasSgemv_v2(cublasHandle_t handle, cublasOperation_t, int m, int n, const float *,
                                    const float *, int, const float *, int, const float *, float *, int) {
  return multiply("cublasSgemv", of(handle)->stream, volume(m, n, 1));
}

ENTRY cublasStatus_t cublasSdot_v2(cublasHandle_t handle, int n, const float *, int, const float *, int, float *) {
  return multiply("cublasSdot", of(handle)->stream, volume(n, 1, 1));
}

// cuBLASLt: descriptions are accepted, and only the sizes of matrices kept

ENTRY size_t cublasLtGetVersion() { return CUBLAS_VERSION; }

ENTRY cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
  *handle = reinterpret_cast<cublasLtHandle_t>(1);
  return CUBLAS_STATUS_SUCCESS;
}

ENTRY cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *description, cublasComputeType_t, cudaDataType_t) {
  *description = reinterpret_cast<cublasLtMatmulDesc_t>(1);
  return CUBLAS_STATUS_SUCCESS;
}

ENTRY cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType, uint64_t rows,
                                                uint64_t columns, int64_t) {
  *layout = reinterpret_cast<cublasLtMatrixLayout_t>(new Layout{rows, columns, 1});
  return CUBLAS_STATUS_SUCCESS;
}

ENTRY cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete of(layout);
  return CUBLAS_STATUS_SUCCESS;
}

ENTRY cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                      cublasLtMatrixLayoutAttribute_t attribute, const void *value,
                                                      size_t) {
  if (attribute == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT) of(layout)->batch = *static_cast<const int *>(value);
  return CUBLAS_STATUS_SUCCESS;
}

ENTRY cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
  *preference = reinterpret_cast<cublasLtMatmulPreference_t>(1);
  return CUBLAS_STATUS_SUCCESS;
}

ENTRY cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                                    cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                                    cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int,
                                                    cublasLtMatmulHeuristicResult_t *results, int *count) {
  memset(results, 0, sizeof *results);
  *count = 1;
  return CUBLAS_STATUS_SUCCESS;
}

ENTRY cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t, const void *, const void *,
                                    cublasLtMatrixLayout_t a, const void *, cublasLtMatrixLayout_t, const void *,
                                    const void *, cublasLtMatrixLayout_t, void *, cublasLtMatrixLayout_t d,
                                    const cublasLtMatmulAlgo_t *, void *, size_t, cudaStream_t stream) {
  // Whether `a` is transposed is not kept: its numbers over the rows of the result are the inner length either way.
  const Layout &result = *of(d), &first = *of(a);
  return multiply("cublasLtMatmul", stream,
                  first.rows * first.columns * result.columns * static_cast<unsigned long long>(result.batch));
}

ACCEPTS(cublasStatus_t, cublasLtMatmulDescDestroy, (cublasLtMatmulDesc_t))
ACCEPTS(cublasStatus_t, cublasLtMatmulDescSetAttribute,
        (cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t, const void *, size_t))
ACCEPTS(cublasStatus_t, cublasLtMatmulPreferenceDestroy, (cublasLtMatmulPreference_t))
ACCEPTS(cublasStatus_t, cublasLtMatmulPreferenceSetAttribute,
        (cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t, const void *, size_t))
