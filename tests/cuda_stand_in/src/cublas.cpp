// libcublas.so.13: every call that computes is noted as one operation of cuBLAS.
#include "stand_in.h"

#define LIBRARY "cublas"

extern "C" {

int cublasCreate_v2(void** handle) { *handle = new char; return 0; }
int cublasDestroy_v2(void* handle) { delete static_cast<char*>(handle); return 0; }
int cublasGetMathMode(void*, int* mode) { *mode = 0; return 0; }
const char* cublasGetStatusName(int) { return "a status of the stand-in"; }
const char* cublasGetStatusString(int) { return "a status of the stand-in"; }

ACCEPTS(cublasSetMathMode)
ACCEPTS(cublasSetStream_v2)
ACCEPTS(cublasSetWorkspace_v2)

COMPUTES(cublasDgeam)
COMPUTES(cublasDgemmBatched)
COMPUTES(cublasDgemmStridedBatched)
COMPUTES(cublasDgemm_v2)
COMPUTES(cublasDgetrfBatched)
COMPUTES(cublasDgetriBatched)
COMPUTES(cublasGemmBatchedEx)
COMPUTES(cublasGemmEx)
COMPUTES(cublasGemmStridedBatchedEx)
COMPUTES(cublasScopy_v2)
COMPUTES(cublasSgeam)
COMPUTES(cublasSgemmBatched)
COMPUTES(cublasSgemmStridedBatched)
COMPUTES(cublasSgemm_v2)
COMPUTES(cublasSgetrfBatched)
COMPUTES(cublasSgetriBatched)
COMPUTES(cublasSscal_v2)

}  // extern "C"
