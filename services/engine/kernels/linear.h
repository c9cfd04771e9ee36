// A matrix product as it is called, and what becomes of its sums.
#pragma once

#include "elements.h"
#include "parallel.h"

extern "C" {

// Strides count elements. Mirrored by ctypes in library.py.
struct TandemLinear {
  const void* rows;         // [num_rows, inner], contiguous; inner fills whole units
  const void* weight;       // [columns, inner], last stride 1
  const void* bias;         // [columns] or null
  const void* addend;       // [num_rows, columns], contiguous, or null; added to what was rounded already
  void* output;             // [num_rows, columns], contiguous, of output_dtype
  TandemParallel parallel;  // or null
  int64_t weight_stride, num_rows, columns, inner;
  int32_t dtype, output_dtype, num_threads;  // output_dtype is dtype, or float32 if there is no addend
};

// Multiplies; the result of a row does not depend on the threads or on other rows.
void tandem_linear(const TandemLinear* product);

}  // extern "C"

namespace tandem {

using Product = TandemLinear;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Finishes and stores the sums of `count` (at most sixteen) columns from `first` on.
template <class D>
void put_sums(const Product& product, const float* results, int64_t row, int64_t first, int count) {
  using Element = typename D::Element;
  const int64_t place = row * product.columns + first;
  Vector sums = load(results);
  if (product.bias != nullptr) sums = add(sums, load_part<D>(static_cast<const Element*>(product.bias) + first, count));
  if (product.addend != nullptr)
    sums = add(load_part<D>(static_cast<const Element*>(product.addend) + place, count), rounded<D>(sums));
  if (product.output_dtype == product.dtype) {
    store_part<D>(static_cast<Element*>(product.output) + place, sums, count);
  } else {
    store_part<Float32>(static_cast<float*>(product.output) + place, sums, count);
  }
}

}  // namespace tandem
