// How onnxruntime takes a library.
#pragma once

#include "operators.h"

#if defined(_WIN32)
#define CODA_EXPORT extern "C" __declspec(dllexport)
#else
#define CODA_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace coda {

// Offer operators, which live as long as the library. A runtime older than the headers has no such API: then nothing is
// registered, and function bodies run.
template <typename Operators>
OrtStatus* register_operators(OrtSessionOptions* options, const OrtApiBase* base, const Operators& operators) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) return nullptr;
  Ort::InitApi(api);
  try {
    static const Ort::CustomOpDomain domain = [&operators] {
      Ort::CustomOpDomain made("ai.coda");
      for (const OrtCustomOp* one : operators()) made.Add(one);
      return made;
    }();
    Ort::UnownedSessionOptions(options).Add(domain);
    return nullptr;
  } catch (const Ort::Exception& error) {
    return api->CreateStatus(error.GetOrtErrorCode(), error.what());
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, error.what());
  }
}

}  // namespace coda
