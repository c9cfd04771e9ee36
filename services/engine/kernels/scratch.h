// A thread's working memory.
#pragma once

#include <cstdlib>
#include <memory>

namespace tandem {

// Grown on demand, taken in pieces that begin on cache lines.
struct Scratch {
  std::unique_ptr<char, decltype(&std::free)> memory{nullptr, &std::free};
  size_t capacity = 0, used = 0;

  void reset(size_t bytes) {
    used = 0;
    if (bytes <= capacity) return;
    memory.reset(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
    if (memory == nullptr) std::abort();
    capacity = bytes;
  }
  template <class T>
  T* take(size_t count) {
    T* result = reinterpret_cast<T*>(memory.get() + used);
    used += (count * sizeof(T) + 63) / 64 * 64;
    return result;
  }
};

}  // namespace tandem
