// Working memory that a thread keeps from call to call, as long as it is small. No onnxruntime here.
#pragma once

#include <cstddef>
#include <type_traits>

namespace coda {

constexpr size_t kKeptBytes = 16 << 20;  // by each vector

// Give the memory of vectors back that a long text has grown.
template <typename... Vectors>
void keep_small(Vectors&... vectors) {
  const auto trim = [](auto& vector) {
    if (vector.capacity() * sizeof(vector[0]) > kKeptBytes) std::decay_t<decltype(vector)>().swap(vector);
  };
  (trim(vectors), ...);
}

}  // namespace coda
