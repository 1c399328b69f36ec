// Route for one example: stable top-k selection and soft top-k gates. No onnxruntime here.
#pragma once

#include <cstdint>
#include <vector>

#include "schedule.h"

namespace coda {

// Memory that a thread keeps from call to call.
struct RouteScratch {
  std::vector<double> valid;
  std::vector<uint64_t> keys;
  std::vector<uint8_t> chosen;
};

// scores, mask: [tokens]; indices, gates, used: [slots].
void route_row(const float* scores, const bool* mask, int64_t tokens, int64_t slots, int64_t p, int64_t q,
               const std::vector<double>& epsilons, RouteScratch& scratch, int64_t* indices, float* gates, bool* used);

}  // namespace coda
