// How a kernel shares its work between threads: the pool of the OpenMP library that torch uses, not a second one.
#pragma once

#include <algorithm>
#include <cstdint>

extern "C" {

// Runs body(data) in num_threads threads: GOMP_parallel.
typedef void (*TandemParallel)(void (*body)(void*), void* data, unsigned num_threads, unsigned flags);

}  // extern "C"

namespace tandem {

enum DType : int32_t { kFloat32 = 0, kBFloat16 = 1 };

// Runs body(data), which takes pieces until none of num_pieces is left, in at most num_threads threads.
inline void run_parallel(TandemParallel parallel, void (*body)(void*), void* data, int64_t num_threads, int64_t num_pieces) {
  const int64_t threads = std::min(num_threads, num_pieces);
  if (threads > 1 && parallel != nullptr) {
    parallel(body, data, static_cast<unsigned>(threads), 0);
  } else {
    body(data);
  }
}

}  // namespace tandem
