// The library that onnxruntime loads.
#include <string>

#include "operators.h"
#include "simd.h"

#if defined(_WIN32)
#define CODA_EXPORT extern "C" __declspec(dllexport)
#else
#define CODA_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// Called by onnxruntime. A runtime older than the headers has no such API: then nothing is registered, and function
// bodies run.
CODA_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) return nullptr;
  Ort::InitApi(api);
#if CODA_X86
  const char* isa = std::getenv("CODA_ISA");
  if (isa != nullptr && coda::isa_rank(isa) == std::size(coda::kIsas)) {
    std::string message = "CODA_ISA=" + std::string(isa) + " is unknown: use";
    for (const char* known : coda::kIsas) message += std::string(" ") + known;
    return api->CreateStatus(ORT_INVALID_ARGUMENT, message.c_str());
  }
#endif
  try {
    static const Ort::CustomOpDomain domain = [] {
      Ort::CustomOpDomain made("ai.coda");
      for (const auto& operators : {coda::routing_operators(), coda::embedding_operators(), coda::layer_operators(),
                                    coda::int8_operators()}) {
        for (const OrtCustomOp* one : operators) made.Add(one);
      }
      return made;
    }();
    Ort::UnownedSessionOptions(options).Add(domain);
    return nullptr;
  } catch (const Ort::Exception& error) {
    return api->CreateStatus(error.GetOrtErrorCode(), error.what());
  }
}
