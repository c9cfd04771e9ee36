// Matrix products on CPU in which no row depends on another: output = rows x weight^T + bias.
//
// A piece of work is a panel of columns with some rows. The panel is transposed to [group][unit][column] first, as
// attention does with keys; then each output is one chain of sums over the inner dimension in a lane of its own:
//
//     weight [columns, inner] -> packed -> rows x groups of sixteen columns in registers -> output
//
// Tiles share loads only, so a row's bits are the same for any number of rows, any place among them and any number
// of threads. Weights are read as they lie in the file (memory-mapped); the packed panel lives for one call.
#include <algorithm>
#include <atomic>

#include "elements.h"
#include "parallel.h"
#include "scratch.h"

extern "C" {

// Strides count elements. Mirrored by ctypes in library.py.
struct TandemLinear {
  const void* rows;         // [num_rows, inner], contiguous; inner fills whole units
  const void* weight;       // [columns, inner], last stride 1
  const void* bias;         // [columns] or null
  void* output;             // [num_rows, columns], contiguous
  TandemParallel parallel;  // or null
  int64_t weight_stride, num_rows, columns, inner;
  int32_t dtype, num_threads;
};

}  // extern "C"

namespace tandem {

using Product = TandemLinear;

// Rows and groups of columns of a tile: as many sums as registers hold.
#if defined(TANDEM_AVX512)
constexpr int kProductRows = 6, kGroups = 4;
#elif defined(TANDEM_AVX2)
constexpr int kProductRows = 3, kGroups = 2;
#else
constexpr int kProductRows = 2, kGroups = 1;
#endif
constexpr int kPanelColumns = kGroups * kLanes;
constexpr int64_t kPiecesPerThread = 4;  // for an even share

template <class D>
struct Panel {
  using Element = typename D::Element;
  const Product& product;
  const int64_t first_column, num_columns;
  const int64_t units;
  const uint32_t* rows;
  uint32_t* packed;  // [kGroups][units][16]

  Panel(const Product& p, int64_t column, Scratch& scratch)
      : product(p), first_column(column), num_columns(std::min<int64_t>(kPanelColumns, p.columns - column)), units(p.inner / D::kPerUnit), rows(static_cast<const uint32_t*>(p.rows)) {
    scratch.reset(kGroups * units * kLanes * sizeof(uint32_t));
    packed = scratch.take<uint32_t>(kGroups * units * kLanes);
  }

  const Element* column(int64_t index) const {
    return static_cast<const Element*>(product.weight) + index * product.weight_stride;
  }

  void pack() const {
    for (int64_t at = 0; at < num_columns; at += kLanes) {
      uint32_t* out = packed + at * units;
      const int present = static_cast<int>(std::min<int64_t>(kLanes, num_columns - at));
      if (present == kLanes) {
        pack_keys<D, true>(column(first_column + at), product.weight_stride, product.inner, out);
      } else {
        for (int lane = 0; lane < kLanes; ++lane)
          for (int64_t unit = 0; unit < units; ++unit) {
            uint32_t bits = 0;
            if (lane < present) std::memcpy(&bits, column(first_column + at + lane) + unit * D::kPerUnit, sizeof bits);
            out[unit * kLanes + lane] = bits;
          }
      }
    }
  }

  template <int R, int G>
  void tile(int64_t first_row, int group) const {
    Vector sums[R][G];
    TANDEM_UNROLL
    for (int r = 0; r < R; ++r)
      TANDEM_UNROLL
      for (int g = 0; g < G; ++g) sums[r][g] = broadcast(0.0f);
    const uint32_t* a = rows + first_row * units;
    const uint32_t* b = packed + group * units * kLanes;
    for (int64_t unit = 0; unit < units; ++unit)
      TANDEM_UNROLL
      for (int r = 0; r < R; ++r)
        TANDEM_UNROLL
        for (int g = 0; g < G; ++g) sums[r][g] = D::dot(sums[r][g], a + r * units + unit, b + (g * units + unit) * kLanes);
    alignas(64) float results[R][G * kLanes];
    TANDEM_UNROLL
    for (int r = 0; r < R; ++r)
      TANDEM_UNROLL
      for (int g = 0; g < G; ++g) store(results[r] + g * kLanes, sums[r][g]);
    const int64_t column = group * kLanes;
    for (int r = 0; r < R; ++r) put(results[r], first_row + r, column, std::min<int64_t>(G * kLanes, num_columns - column));
  }

  void put(const float* results, int64_t row, int64_t column, int64_t count) const {
    column += first_column;
    Element* to = static_cast<Element*>(product.output) + row * product.columns + column;
    const Element* bias = product.bias == nullptr ? nullptr : static_cast<const Element*>(product.bias) + column;
    for (int64_t at = 0; at < count; at += kLanes) {
      const int present = static_cast<int>(std::min<int64_t>(kLanes, count - at));
      alignas(64) float addends[kLanes] = {};
      if (bias != nullptr)
        for (int lane = 0; lane < present; ++lane) addends[lane] = D::to_float(bias[at + lane]);
      alignas(64) Element rounded[kLanes];
      D::store(rounded, add(load(results + at), load(addends)));
      std::memcpy(to + at, rounded, present * sizeof(Element));
    }
  }

  template <int R>
  void some_rows(int64_t row) const {
    const int groups = static_cast<int>((num_columns + kLanes - 1) / kLanes);
    if (groups == kGroups) return tile<R, kGroups>(row, 0);
    for (int group = 0; group < groups; ++group) tile<R, 1>(row, group);
  }

  template <int R>
  void last_rows(int64_t row, int64_t end_row) const {
    if (row + R == end_row) return some_rows<R>(row);
    if constexpr (R > 1) last_rows<R - 1>(row, end_row);
  }

  void run(int64_t row, int64_t end_row) const {
    pack();
    for (; row + kProductRows <= end_row; row += kProductRows) some_rows<kProductRows>(row);
    last_rows<kProductRows - 1>(row, end_row);
  }
};

struct ProductWork {
  const Product* product;
  int64_t panel_rows, row_panels, total;
  std::atomic<int64_t> next;
};

inline void multiply(void* data) {
  static thread_local Scratch scratch;
  ProductWork& work = *static_cast<ProductWork*>(data);
  const Product& product = *work.product;
  for (int64_t index = work.next++; index < work.total; index = work.next++) {
    const int64_t column = index / work.row_panels * kPanelColumns, row = index % work.row_panels * work.panel_rows;
    const int64_t end_row = std::min(row + work.panel_rows, product.num_rows);
    if (product.dtype == kFloat32) {
      Panel<Float32>(product, column, scratch).run(row, end_row);
    } else {
      Panel<BFloat16>(product, column, scratch).run(row, end_row);
    }
  }
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace tandem

extern "C" {

// Multiplies; the result of a row does not depend on the threads or on other rows.
void tandem_linear(const TandemLinear* product) {
  using namespace tandem;
  if (product->num_rows == 0) return;
  const int64_t column_panels = ceil_div(product->columns, kPanelColumns);
  const int64_t wanted = column_panels < kPiecesPerThread * product->num_threads ? product->num_threads : 1;
  const int64_t panel_rows = ceil_div(ceil_div(product->num_rows, wanted), kProductRows) * kProductRows;
  const int64_t row_panels = ceil_div(product->num_rows, panel_rows);
  ProductWork work{product, panel_rows, row_panels, row_panels * column_panels, {0}};
  run_parallel(product->parallel, &multiply, &work, product->num_threads, work.total);
}

}  // extern "C"
