// libcudnn.so.9: descriptors hold nothing, and what computes is noted. onnxruntime looks every function up by name.
#include <cstddef>
#include <cstdint>

#include "stand_in.h"

#define LIBRARY "cudnn"

// Convolutions and recurrent layers: nothing here needs them.
#define REFUSES(name) \
  int name() { stand_in_log("cudnn refused", #name, 0); return 3000; }  // CUDNN_STATUS_NOT_SUPPORTED

extern "C" {

size_t cudnnGetVersion() { return 91500; }  // 9.15.0
const char* cudnnGetErrorString(int) { return "a status of the stand-in"; }
void cudnnGetLastErrorString(char* text, size_t size) { if (size) *text = 0; }

CREATES(cudnnCreate)
DESTROYS(cudnnDestroy)
ACCEPTS(cudnnGetStream)
ACCEPTS(cudnnSetStream)

CREATES(cudnnCreateActivationDescriptor)
CREATES(cudnnCreateConvolutionDescriptor)
CREATES(cudnnCreateDropoutDescriptor)
CREATES(cudnnCreateFilterDescriptor)
CREATES(cudnnCreateLRNDescriptor)
CREATES(cudnnCreatePoolingDescriptor)
CREATES(cudnnCreateRNNDataDescriptor)
CREATES(cudnnCreateRNNDescriptor)
CREATES(cudnnCreateReduceTensorDescriptor)
CREATES(cudnnCreateTensorDescriptor)

DESTROYS(cudnnDestroyActivationDescriptor)
DESTROYS(cudnnDestroyConvolutionDescriptor)
DESTROYS(cudnnDestroyDropoutDescriptor)
DESTROYS(cudnnDestroyFilterDescriptor)
DESTROYS(cudnnDestroyLRNDescriptor)
DESTROYS(cudnnDestroyPoolingDescriptor)
DESTROYS(cudnnDestroyRNNDataDescriptor)
DESTROYS(cudnnDestroyRNNDescriptor)
DESTROYS(cudnnDestroyReduceTensorDescriptor)
DESTROYS(cudnnDestroyTensorDescriptor)

ACCEPTS(cudnnSetActivationDescriptor)
ACCEPTS(cudnnSetConvolutionGroupCount)
ACCEPTS(cudnnSetConvolutionMathType)
ACCEPTS(cudnnSetConvolutionNdDescriptor)
ACCEPTS(cudnnSetDropoutDescriptor)
ACCEPTS(cudnnSetFilterNdDescriptor)
ACCEPTS(cudnnSetLRNDescriptor)
ACCEPTS(cudnnSetPoolingNdDescriptor)
ACCEPTS(cudnnSetRNNDataDescriptor)
ACCEPTS(cudnnSetRNNDescriptor_v8)
ACCEPTS(cudnnSetReduceTensorDescriptor)
ACCEPTS(cudnnSetTensorNdDescriptor)
ACCEPTS(cudnnDeriveBNTensorDescriptor)

// cuDNN's graphs, as which some cards compute attention in half precision. Every graph has one plan, without knobs, notes
// or workspace. The numbers are those of cudnnBackendAttributeName_t.

int cudnnBackendCreateDescriptor(int, void** made) { *made = new char; return 0; }
DESTROYS(cudnnBackendDestroyDescriptor)
ACCEPTS(cudnnBackendSetAttribute)
ACCEPTS(cudnnBackendFinalize)
COMPUTES(cudnnBackendExecute)

int cudnnBackendGetAttribute(void*, int attribute, int, int64_t asked, int64_t* found, void* values) {
  bool there = true;
  switch (attribute) {
    case 202:  // CUDNN_ATTR_ENGINEHEUR_RESULTS: a descriptor that the caller made
    case 300:  // CUDNN_ATTR_ENGINECFG_ENGINE: likewise
      break;
    case 304:  // CUDNN_ATTR_ENGINECFG_SHARED_MEMORY_USED
      if (asked) *static_cast<int32_t*>(values) = 0;
      break;
    case 402:   // CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE
    case 1301:  // CUDNN_ATTR_ENGINE_GLOBAL_INDEX
      if (asked) *static_cast<int64_t*>(values) = 0;
      break;
    default:
      there = false;
  }
  if (found) *found = there;
  return 0;
}

int cudnnGetReductionIndicesSize(void*, void*, void*, void*, size_t* bytes) { *bytes = 1024; return 0; }
int cudnnGetReductionWorkspaceSize(void*, void*, void*, void*, size_t* bytes) { *bytes = 1024; return 0; }

COMPUTES(cudnnActivationForward)
COMPUTES(cudnnAddTensor)
COMPUTES(cudnnBatchNormalizationForwardInference)
COMPUTES(cudnnBatchNormalizationForwardTraining)
COMPUTES(cudnnLRNCrossChannelForward)
COMPUTES(cudnnPoolingForward)
COMPUTES(cudnnReduceTensor)
COMPUTES(cudnnSoftmaxForward)

REFUSES(cudnnConvolutionBiasActivationForward)
REFUSES(cudnnConvolutionForward)
REFUSES(cudnnDropoutGetStatesSize)
REFUSES(cudnnFindConvolutionForwardAlgorithmEx)
REFUSES(cudnnGetConvolutionForwardAlgorithm_v7)
REFUSES(cudnnGetConvolutionForwardWorkspaceSize)
REFUSES(cudnnGetRNNTempSpaceSizes)
REFUSES(cudnnGetRNNWeightParams)
REFUSES(cudnnGetTensorNdDescriptor)
REFUSES(cudnnRNNForward)

}  // extern "C"
