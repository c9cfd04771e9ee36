// What stands between the matrix products of a decoder layer, each row by itself: norm, rotary embedding, gate.
//
// Intermediate results are rounded to the element type wherever transformers' own code rounds them, by storing them.
#include <atomic>
#include <cmath>

#include "elements.h"
#include "parallel.h"

extern "C" {

// All rows are contiguous. Mirrored by ctypes in library.py.

// output = weight * round(rows / sqrt(mean(rows^2) + epsilon))
struct TandemNorm {
  const void* rows;    // [num_rows, width]
  const void* weight;  // [width]
  void* output;        // [num_rows, width]
  TandemParallel parallel;
  int64_t num_rows, width;
  float epsilon;
  int32_t dtype, num_threads;
};

// In place: the first half of each head h[:n] becomes h[:n] * cos[:n] - h[n:] * sin[:n], the second half becomes
// h[n:] * cos[n:] + h[:n] * sin[n:].
struct TandemRotate {
  void* rows;         // [num_rows, heads, width]
  const void* cos;    // [num_rows, width]
  const void* sin;    // [num_rows, width]
  TandemParallel parallel;
  int64_t num_rows, heads, width;
  int32_t dtype, num_threads;
};

// output = silu(gate) * up
struct TandemGate {
  const void* gate;  // [num_rows, width]
  const void* up;    // [num_rows, width]
  void* output;      // [num_rows, width]
  TandemParallel parallel;
  int64_t num_rows, width;
  int32_t dtype, num_threads;
};

}  // extern "C"

namespace tandem {

constexpr int64_t kElementsPerPiece = 16384;  // less is not worth another thread

inline int lanes_at(int64_t at, int64_t width) { return static_cast<int>(std::min<int64_t>(kLanes, width - at)); }

template <class D>
void run_row(const TandemNorm& norm, int64_t row) {
  using Element = typename D::Element;
  const Element* from = static_cast<const Element*>(norm.rows) + row * norm.width;
  const Element* weight = static_cast<const Element*>(norm.weight);
  Element* to = static_cast<Element*>(norm.output) + row * norm.width;
  Vector squares = broadcast(0.0f);
  for (int64_t at = 0; at < norm.width; at += kLanes) {
    const Vector x = load_part<D>(from + at, lanes_at(at, norm.width));
    squares = fma(x, x, squares);
  }
  const float mean = reduce_add(squares) / static_cast<float>(norm.width);
  const Vector scale = broadcast(1.0f / std::sqrt(mean + norm.epsilon));
  for (int64_t at = 0; at < norm.width; at += kLanes) {
    const int present = lanes_at(at, norm.width);
    const Vector scaled = rounded<D>(mul(load_part<D>(from + at, present), scale));
    store_part<D>(to + at, mul(load_part<D>(weight + at, present), scaled), present);
  }
}

template <class D>
void run_row(const TandemRotate& rotate, int64_t row) {
  using Element = typename D::Element;
  const int64_t half = rotate.width / 2;
  const Element* cos = static_cast<const Element*>(rotate.cos) + row * rotate.width;
  const Element* sin = static_cast<const Element*>(rotate.sin) + row * rotate.width;
  for (int64_t head = 0; head < rotate.heads; ++head) {
    Element* first = static_cast<Element*>(rotate.rows) + (row * rotate.heads + head) * rotate.width;
    Element* second = first + half;
    for (int64_t at = 0; at < half; at += kLanes) {
      const int present = lanes_at(at, half);
      const Vector a = load_part<D>(first + at, present), b = load_part<D>(second + at, present);
      const Vector left = rounded<D>(mul(a, load_part<D>(cos + at, present)));
      const Vector left_turned = rounded<D>(mul(b, load_part<D>(sin + at, present)));
      const Vector right = rounded<D>(mul(b, load_part<D>(cos + half + at, present)));
      const Vector right_turned = rounded<D>(mul(a, load_part<D>(sin + half + at, present)));
      store_part<D>(first + at, sub(left, left_turned), present);
      store_part<D>(second + at, add(right, right_turned), present);
    }
  }
}

template <class D>
void run_row(const TandemGate& gate, int64_t row) {
  using Element = typename D::Element;
  const int64_t begin = row * gate.width;
  const Element* from = static_cast<const Element*>(gate.gate) + begin;
  const Element* up = static_cast<const Element*>(gate.up) + begin;
  Element* to = static_cast<Element*>(gate.output) + begin;
  for (int64_t at = 0; at < gate.width; at += kLanes) {
    const int present = lanes_at(at, gate.width);
    const Vector activated = rounded<D>(sigmoid_linear_unit(load_part<D>(from + at, present)));
    store_part<D>(to + at, mul(activated, load_part<D>(up + at, present)), present);
  }
}

template <class Call>
struct RowWork {
  const Call* call;
  int64_t rows_per_piece;
  std::atomic<int64_t> next_row;
};

template <class Call>
void run_pieces(void* data) {
  RowWork<Call>& work = *static_cast<RowWork<Call>*>(data);
  const Call& call = *work.call;
  for (int64_t row = work.next_row.fetch_add(work.rows_per_piece); row < call.num_rows;
       row = work.next_row.fetch_add(work.rows_per_piece)) {
    const int64_t end = std::min(row + work.rows_per_piece, call.num_rows);
    for (int64_t each = row; each < end; ++each)
      call.dtype == kFloat32 ? run_row<Float32>(call, each) : run_row<BFloat16>(call, each);
  }
}

template <class Call>
void run_rows(const Call& call, int64_t elements_per_row) {
  const int64_t rows_per_piece = std::max<int64_t>(1, kElementsPerPiece / std::max<int64_t>(1, elements_per_row));
  RowWork<Call> work{&call, rows_per_piece, {0}};
  const int64_t pieces = (call.num_rows + rows_per_piece - 1) / rows_per_piece;
  run_parallel(call.parallel, &run_pieces<Call>, &work, call.num_threads, pieces);
}

}  // namespace tandem

extern "C" {

void tandem_norm(const TandemNorm* call) { tandem::run_rows(*call, call->width); }

void tandem_rotate(const TandemRotate* call) { tandem::run_rows(*call, call->heads * call->width); }

void tandem_gate(const TandemGate* call) { tandem::run_rows(*call, call->width); }

}  // extern "C"
