/* What host code sees of CUDA's headers, as a table: sizes, offsets, values and signatures. Compiled twice, with
 * NVIDIA's headers and with dev/emulation's, it must say the same (test_cuda_headers.cpp). */
#ifndef LOOM_TEST_CUDA_HEADERS_H
#define LOOM_TEST_CUDA_HEADERS_H

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

typedef std::vector<std::pair<std::string, std::string>> header_table;

/* Of NVIDIA's headers, in cuda_headers_nvidia.cpp; null where that is not linked because there is no toolkit. */
header_table nvidia_headers() __attribute__((weak));

namespace {

/* A type in the compiler's words. */
template <typename T> std::string type_name() {
    return __PRETTY_FUNCTION__;
}

header_table describe_headers() {
    header_table table;
    const auto add = [&](const char *what, const std::string &is) { table.push_back({what, is}); };
#define VALUE(name)  add(#name, std::to_string((long long)(name)))
#define TYPE(name)   add(#name, std::to_string(sizeof(name)) + " bytes, aligned to " + std::to_string(alignof(name)))
#define MEMBER(t, m) add(#t "." #m, std::to_string(offsetof(t, m)) + ", " + type_name<decltype(t::m)>())
#define CALL(name)   add(#name, type_name<decltype(&name)>())
#define SAME(name)   add(#name, type_name<name>())

    /* cuda_runtime_api.h: types */
    TYPE(cudaError_t);
    TYPE(uint3);
    MEMBER(uint3, x);
    MEMBER(uint3, y);
    MEMBER(uint3, z);
    TYPE(dim3);
    MEMBER(dim3, x);
    MEMBER(dim3, y);
    MEMBER(dim3, z);
    SAME(cudaStream_t);
    SAME(cudaEvent_t);
    SAME(cudaGraph_t);
    SAME(cudaGraphNode_t);
    SAME(cudaGraphExec_t);
    TYPE(cudaMemcpyKind);
    TYPE(cudaStreamCaptureStatus);
    TYPE(cudaStreamCaptureMode);
    TYPE(cudaGraphNodeType);
    TYPE(cudaFuncAttribute);
    TYPE(cudaDeviceAttr);
    TYPE(cudaDeviceProp);
    MEMBER(cudaDeviceProp, name);
    MEMBER(cudaDeviceProp, totalGlobalMem);
    MEMBER(cudaDeviceProp, sharedMemPerBlock);
    MEMBER(cudaDeviceProp, regsPerBlock);
    MEMBER(cudaDeviceProp, warpSize);
    MEMBER(cudaDeviceProp, maxThreadsPerBlock);
    MEMBER(cudaDeviceProp, major);
    MEMBER(cudaDeviceProp, minor);
    MEMBER(cudaDeviceProp, multiProcessorCount);
    MEMBER(cudaDeviceProp, memoryBusWidth);
    MEMBER(cudaDeviceProp, l2CacheSize);
    MEMBER(cudaDeviceProp, sharedMemPerMultiprocessor);
    MEMBER(cudaDeviceProp, sharedMemPerBlockOptin);
    TYPE(cudaLaunchAttributeID);
    TYPE(cudaLaunchAttributeValue);
    TYPE(cudaLaunchAttribute);
    MEMBER(cudaLaunchAttribute, id);
    MEMBER(cudaLaunchAttribute, val);
    TYPE(cudaLaunchConfig_t);
    MEMBER(cudaLaunchConfig_t, gridDim);
    MEMBER(cudaLaunchConfig_t, blockDim);
    MEMBER(cudaLaunchConfig_t, dynamicSmemBytes);
    MEMBER(cudaLaunchConfig_t, stream);
    MEMBER(cudaLaunchConfig_t, attrs);
    MEMBER(cudaLaunchConfig_t, numAttrs);

    /* values */
    add("CUDA's major version", std::to_string(CUDART_VERSION / 1000));
    VALUE(cudaSuccess);
    VALUE(cudaErrorInvalidValue);
    VALUE(cudaErrorMemoryAllocation);
    VALUE(cudaErrorInitializationError);
    VALUE(cudaErrorInvalidConfiguration);
    VALUE(cudaErrorInvalidMemcpyDirection);
    VALUE(cudaErrorStubLibrary);
    VALUE(cudaErrorInsufficientDriver);
    VALUE(cudaErrorDevicesUnavailable);
    VALUE(cudaErrorInvalidDeviceFunction);
    VALUE(cudaErrorNoDevice);
    VALUE(cudaErrorInvalidDevice);
    VALUE(cudaErrorNoKernelImageForDevice);
    VALUE(cudaErrorInvalidResourceHandle);
    VALUE(cudaErrorIllegalState);
    VALUE(cudaErrorNotReady);
    VALUE(cudaErrorIllegalAddress);
    VALUE(cudaErrorLaunchOutOfResources);
    VALUE(cudaErrorLaunchFailure);
    VALUE(cudaErrorNotSupported);
    VALUE(cudaErrorStreamCaptureUnsupported);
    VALUE(cudaErrorStreamCaptureInvalidated);
    VALUE(cudaErrorStreamCaptureMerge);
    VALUE(cudaErrorStreamCaptureUnmatched);
    VALUE(cudaErrorStreamCaptureUnjoined);
    VALUE(cudaErrorStreamCaptureIsolation);
    VALUE(cudaErrorStreamCaptureImplicit);
    VALUE(cudaErrorCapturedEvent);
    VALUE(cudaErrorStreamCaptureWrongThread);
    VALUE(cudaErrorUnknown);
    VALUE(cudaMemcpyHostToHost);
    VALUE(cudaMemcpyHostToDevice);
    VALUE(cudaMemcpyDeviceToHost);
    VALUE(cudaMemcpyDeviceToDevice);
    VALUE(cudaMemcpyDefault);
    VALUE(cudaStreamCaptureStatusNone);
    VALUE(cudaStreamCaptureStatusActive);
    VALUE(cudaStreamCaptureStatusInvalidated);
    VALUE(cudaStreamCaptureModeGlobal);
    VALUE(cudaStreamCaptureModeThreadLocal);
    VALUE(cudaStreamCaptureModeRelaxed);
    VALUE(cudaGraphNodeTypeKernel);
    VALUE(cudaGraphNodeTypeMemcpy);
    VALUE(cudaGraphNodeTypeMemset);
    VALUE(cudaFuncAttributeMaxDynamicSharedMemorySize);
    VALUE(cudaFuncAttributePreferredSharedMemoryCarveout);
    VALUE(cudaDevAttrMaxThreadsPerBlock);
    VALUE(cudaDevAttrMaxSharedMemoryPerBlock);
    VALUE(cudaDevAttrWarpSize);
    VALUE(cudaDevAttrClockRate);
    VALUE(cudaDevAttrMultiProcessorCount);
    VALUE(cudaDevAttrMemoryClockRate);
    VALUE(cudaDevAttrGlobalMemoryBusWidth);
    VALUE(cudaDevAttrL2CacheSize);
    VALUE(cudaDevAttrComputeCapabilityMajor);
    VALUE(cudaDevAttrComputeCapabilityMinor);
    VALUE(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    VALUE(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    VALUE(cudaLaunchAttributeIgnore);
    VALUE(cudaHostAllocDefault);
    VALUE(cudaHostAllocPortable);
    VALUE(cudaStreamDefault);
    VALUE(cudaStreamNonBlocking);
    VALUE(cudaEventDefault);
    VALUE(cudaEventBlockingSync);
    VALUE(cudaEventDisableTiming);

    /* functions */
    CALL(cudaGetLastError);
    CALL(cudaPeekAtLastError);
    CALL(cudaGetErrorName);
    CALL(cudaGetErrorString);
    CALL(cudaDriverGetVersion);
    CALL(cudaRuntimeGetVersion);
    CALL(cudaGetDeviceCount);
    CALL(cudaGetDevice);
    CALL(cudaSetDevice);
    CALL(cudaGetDeviceProperties);
    CALL(cudaDeviceGetAttribute);
    CALL(cudaDeviceSynchronize);
    CALL(cudaFuncSetAttribute);
    CALL(cudaMemGetInfo);
    CALL(cudaMalloc);
    CALL(cudaFree);
    CALL(cudaMallocHost);
    CALL(cudaHostAlloc);
    CALL(cudaFreeHost);
    CALL(cudaMemcpy);
    CALL(cudaMemcpyAsync);
    CALL(cudaMemset);
    CALL(cudaMemsetAsync);
    CALL(cudaStreamCreate);
    CALL(cudaStreamCreateWithFlags);
    CALL(cudaStreamDestroy);
    CALL(cudaStreamSynchronize);
    CALL(cudaStreamQuery);
    CALL(cudaStreamWaitEvent);
    CALL(cudaEventCreate);
    CALL(cudaEventCreateWithFlags);
    CALL(cudaEventDestroy);
    CALL(cudaEventRecord);
    CALL(cudaEventSynchronize);
    CALL(cudaEventQuery);
    CALL(cudaEventElapsedTime);
    CALL(cudaStreamBeginCapture);
    CALL(cudaStreamEndCapture);
    CALL(cudaStreamIsCapturing);
    CALL(cudaGraphGetNodes);
    CALL(cudaGraphNodeGetType);
    CALL(cudaGraphInstantiate);
    CALL(cudaGraphLaunch);
    CALL(cudaGraphExecDestroy);
    CALL(cudaGraphDestroy);

    /* cublasLt.h: types */
    TYPE(cublasStatus_t);
    TYPE(cublasOperation_t);
    TYPE(cublasComputeType_t);
    TYPE(cudaDataType_t);
    SAME(cudaDataType);
    TYPE(cublasLtOrder_t);
    TYPE(cublasLtEpilogue_t);
    SAME(cublasLtHandle_t);
    TYPE(cublasLtMatrixLayoutOpaque_t);
    TYPE(cublasLtMatmulDescOpaque_t);
    TYPE(cublasLtMatmulPreferenceOpaque_t);
    TYPE(cublasLtMatmulAlgo_t);
    TYPE(cublasLtMatmulHeuristicResult_t);
    MEMBER(cublasLtMatmulHeuristicResult_t, algo);
    MEMBER(cublasLtMatmulHeuristicResult_t, workspaceSize);
    MEMBER(cublasLtMatmulHeuristicResult_t, state);
    MEMBER(cublasLtMatmulHeuristicResult_t, wavesCount);

    /* values */
    VALUE(CUBLAS_STATUS_SUCCESS);
    VALUE(CUBLAS_STATUS_NOT_INITIALIZED);
    VALUE(CUBLAS_STATUS_ALLOC_FAILED);
    VALUE(CUBLAS_STATUS_INVALID_VALUE);
    VALUE(CUBLAS_STATUS_ARCH_MISMATCH);
    VALUE(CUBLAS_STATUS_EXECUTION_FAILED);
    VALUE(CUBLAS_STATUS_INTERNAL_ERROR);
    VALUE(CUBLAS_STATUS_NOT_SUPPORTED);
    VALUE(CUBLAS_OP_N);
    VALUE(CUBLAS_OP_T);
    VALUE(CUBLAS_OP_C);
    VALUE(CUBLAS_COMPUTE_16F);
    VALUE(CUBLAS_COMPUTE_32F);
    VALUE(CUBLAS_COMPUTE_32F_PEDANTIC);
    VALUE(CUBLAS_COMPUTE_32F_FAST_16F);
    VALUE(CUBLAS_COMPUTE_32F_FAST_16BF);
    VALUE(CUBLAS_COMPUTE_32F_FAST_TF32);
    VALUE(CUBLAS_COMPUTE_64F);
    VALUE(CUDA_R_32F);
    VALUE(CUDA_R_64F);
    VALUE(CUDA_R_16F);
    VALUE(CUDA_R_16BF);
    VALUE(CUBLASLT_ORDER_COL);
    VALUE(CUBLASLT_ORDER_ROW);
    VALUE(CUBLASLT_MATRIX_LAYOUT_TYPE);
    VALUE(CUBLASLT_MATRIX_LAYOUT_ORDER);
    VALUE(CUBLASLT_MATRIX_LAYOUT_ROWS);
    VALUE(CUBLASLT_MATRIX_LAYOUT_COLS);
    VALUE(CUBLASLT_MATRIX_LAYOUT_LD);
    VALUE(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT);
    VALUE(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET);
    VALUE(CUBLASLT_MATMUL_DESC_COMPUTE_TYPE);
    VALUE(CUBLASLT_MATMUL_DESC_SCALE_TYPE);
    VALUE(CUBLASLT_MATMUL_DESC_POINTER_MODE);
    VALUE(CUBLASLT_MATMUL_DESC_TRANSA);
    VALUE(CUBLASLT_MATMUL_DESC_TRANSB);
    VALUE(CUBLASLT_MATMUL_DESC_EPILOGUE);
    VALUE(CUBLASLT_MATMUL_DESC_BIAS_POINTER);
    VALUE(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE);
    VALUE(CUBLASLT_EPILOGUE_DEFAULT);
    VALUE(CUBLASLT_EPILOGUE_RELU);
    VALUE(CUBLASLT_EPILOGUE_BIAS);
    VALUE(CUBLASLT_EPILOGUE_GELU);
    VALUE(CUBLASLT_EPILOGUE_GELU_AUX);
    VALUE(CUBLASLT_EPILOGUE_GELU_BIAS);
    VALUE(CUBLASLT_EPILOGUE_GELU_AUX_BIAS);
    VALUE(CUBLASLT_EPILOGUE_BGRADA);
    VALUE(CUBLASLT_EPILOGUE_BGRADB);
    VALUE(CUBLASLT_POINTER_MODE_HOST);
    VALUE(CUBLASLT_POINTER_MODE_DEVICE);
    VALUE(CUBLASLT_REDUCTION_SCHEME_NONE);
    VALUE(CUBLASLT_REDUCTION_SCHEME_INPLACE);
    VALUE(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
    VALUE(CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE);
    VALUE(CUBLASLT_REDUCTION_SCHEME_MASK);
    VALUE(CUBLASLT_MATMUL_PREF_SEARCH_MODE);
    VALUE(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
    VALUE(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
    VALUE(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
    VALUE(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
    VALUE(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
    VALUE(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);

    /* functions */
    CALL(cublasLtCreate);
    CALL(cublasLtDestroy);
    CALL(cublasLtGetVersion);
    CALL(cublasLtGetStatusName);
    CALL(cublasLtGetStatusString);
    CALL(cublasLtMatmulDescCreate);
    CALL(cublasLtMatmulDescDestroy);
    CALL(cublasLtMatmulDescSetAttribute);
    CALL(cublasLtMatrixLayoutCreate);
    CALL(cublasLtMatrixLayoutDestroy);
    CALL(cublasLtMatrixLayoutSetAttribute);
    CALL(cublasLtMatmulPreferenceCreate);
    CALL(cublasLtMatmulPreferenceDestroy);
    CALL(cublasLtMatmulPreferenceSetAttribute);
    CALL(cublasLtMatmulAlgoGetHeuristic);
    CALL(cublasLtMatmulAlgoCheck);
    CALL(cublasLtMatmul);

#undef VALUE
#undef TYPE
#undef MEMBER
#undef CALL
#undef SAME
    return table;
}

} // namespace
#endif
