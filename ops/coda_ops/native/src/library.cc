// The library of CPU kernels that onnxruntime loads.
#include <string>

#include "register.h"
#include "simd.h"

// Called by onnxruntime.
CODA_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
#if CODA_X86
  const char* isa = std::getenv("CODA_ISA");
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (api != nullptr && isa != nullptr && coda::isa_rank(isa) == std::size(coda::kIsas)) {
    std::string message = "CODA_ISA=" + std::string(isa) + " is unknown: use";
    for (const char* known : coda::kIsas) message += std::string(" ") + known;
    return api->CreateStatus(ORT_INVALID_ARGUMENT, message.c_str());
  }
#endif
  return coda::register_operators(options, base, [] {
    std::vector<const OrtCustomOp*> all;
    for (const auto& operators : {coda::routing_operators(), coda::embedding_operators(), coda::layer_operators(),
                                  coda::attention_operators(), coda::int8_operators()}) {
      all.insert(all.end(), operators.begin(), operators.end());
    }
    return all;
  });
}
