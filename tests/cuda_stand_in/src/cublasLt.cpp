// libcublasLt.so.13: one algorithm is offered for every product, and each product is noted.
#include <cstring>

#include "stand_in.h"

#define LIBRARY "cublas"

extern "C" {

// cublasLtMatmulHeuristicResult_t: algorithm (64 bytes), workspace, status, waves, reserved. All zero: ready, no workspace.
constexpr size_t kResultBytes = 96;

int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int asked, void* results, int* found) {
  *found = asked > 0 ? 1 : 0;
  if (*found) std::memset(results, 0, kResultBytes);
  return 0;
}

COMPUTES(cublasLtMatmul)
COMPUTES(cublasLtMatrixTransform)

CREATES(cublasLtCreate)
CREATES(cublasLtMatmulDescCreate)
CREATES(cublasLtMatmulPreferenceCreate)
CREATES(cublasLtMatrixLayoutCreate)
CREATES(cublasLtMatrixTransformDescCreate)

DESTROYS(cublasLtDestroy)
DESTROYS(cublasLtMatmulDescDestroy)
DESTROYS(cublasLtMatmulPreferenceDestroy)
DESTROYS(cublasLtMatrixLayoutDestroy)
DESTROYS(cublasLtMatrixTransformDescDestroy)

ACCEPTS(cublasLtMatmulAlgoConfigSetAttribute)
ACCEPTS(cublasLtMatmulAlgoInit)
ACCEPTS(cublasLtMatmulDescSetAttribute)
ACCEPTS(cublasLtMatmulPreferenceSetAttribute)
ACCEPTS(cublasLtMatrixLayoutSetAttribute)

}  // extern "C"
