// Starting the kernels on a stream. No onnxruntime here, and no CUDA but for its host's types.
#pragma once

#ifdef CODA_EMULATED
#include "emulate.h"
#else
#include <cuda_runtime_api.h>
#endif

#include <cstdint>
#include <vector>

namespace coda {

// Whether this card can run the kernels: a library for other cards, or a driver that is too old, is found before any run.
cudaError_t check_card();

// Whether the kernel takes them: no more than 256 before the last one, which stays.
bool takes_epsilons(const std::vector<double>& epsilons);

// scores, mask: [batch, tokens]; indices, gates, used: [batch, slots], slots = ceil(tokens * denominator / numerator).
cudaError_t launch_route(const float* scores, const bool* mask, int64_t* indices, float* gates, bool* used, int64_t batch,
                         int64_t tokens, int64_t slots, int64_t numerator, int64_t denominator,
                         const std::vector<double>& epsilons, cudaStream_t stream);

// x: [batch, tokens, width]; indices: [batch, slots]; taken: [batch, slots, width], of so many bytes a token. An index
// outside of the sequence takes zeros.
cudaError_t launch_take(const void* x, const int64_t* indices, void* taken, int64_t batch, int64_t tokens, int64_t slots,
                        int64_t bytes, cudaStream_t stream);

// out, base: [batch, tokens, width], which may be the same; indices, gates: [batch, slots]; now, before: [batch, slots,
// width], before null for updates. T: float or __half. An index outside of the sequence changes nothing.
template <typename T>
cudaError_t launch_put(T* out, const T* base, const int64_t* indices, const float* gates, const T* now, const T* before,
                       int64_t batch, int64_t tokens, int64_t slots, int64_t width, cudaStream_t stream);

}  // namespace coda
