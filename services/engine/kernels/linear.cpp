// Matrix products on CPU in which no row depends on another: output = rows x weight^T + bias, and then + addend.
//
// An output is sixteen chains of sums: lane l of a register adds up every sixteenth unit of the inner dimension from
// the l-th on, and the lanes are added in a fixed order in the end. Tiles of some rows and columns share loads only:
//
//     row    [unit 0..15][unit 16..31] ...
//              x             x              -> sixteen lanes -> one output
//     column [unit 0..15][unit 16..31] ...
//
// so a row's bits are the same for any number of rows, any place among them and any number of threads. Weights are
// read as they lie in the file (memory-mapped), each once if all rows fit a tile.
#include <algorithm>
#include <atomic>

#include "linear.h"

namespace tandem {

// Registers hold kSums sums at once: those of kTileRows rows with as many columns, which takes the fewest loads.
// Fewer rows meet one column after the other, so that weights are read from memory in one stream, as hardware
// expects it; a tile has the next columns fetched in such a stream.
#if defined(TANDEM_AVX512)
constexpr int kSums = 16, kTileRows = 4;
#else
constexpr int kSums = 4, kTileRows = 2;
#endif
constexpr int64_t kLineBytes = 64;
constexpr int kPanelColumns = 4 * kLanes;
constexpr int64_t kPiecesPerThread = 4;  // for an even share

// Has a stretch of memory brought into the second-level cache, some lines at a time.
struct Fetching {
  const char* next;
  const char* end;
  int lines;  // at each step

  void step() {
    for (int line = 0; line < lines; ++line, next = std::min(next + kLineBytes, end)) __builtin_prefetch(next, 0, 2);
  }
};

// Sixteen columns; where fewer are left, the last one stands in for the rest, and is not stored again.
template <class D>
struct Columns {
  using Element = typename D::Element;
  static constexpr int64_t kStep = kLanes * D::kPerUnit;  // elements of a factor

  const Product& product;
  const int64_t first, present;
  const Element* weights[kLanes];

  Columns(const Product& p, int64_t column) : product(p), first(column), present(std::min<int64_t>(kLanes, p.columns - column)) {
    for (int64_t at = 0; at < kLanes; ++at)
      weights[at] = static_cast<const Element*>(p.weight) + (first + std::min(at, present - 1)) * p.weight_stride;
  }

  // results[r][c] of R rows with kSums / R columns from `column` on, S of them at a time.
  template <int R, int S>
  void tile(const Element* rows, int column, float (*results)[kLanes], Fetching& fetching) const {
    constexpr int C = kSums / R;
    Vector sums[kSums];
    for (int c = 0; c < C; c += S) add_up<R, S, C>(rows, column + c, sums + c, fetching);
    float totals[kSums];
    if constexpr (kSums == kLanes) {
      reduce_add_each(sums, totals);
    } else {
      for (int i = 0; i < kSums; ++i) totals[i] = reduce_add(sums[i]);
    }
    for (int r = 0; r < R; ++r) std::memcpy(results[r] + column, totals + r * C, C * sizeof(float));
  }

  // chains[r * C + c] of R rows with the S columns from `column` on.
  template <int R, int S, int C>
  void add_up(const Element* rows, int column, Vector* chains, Fetching& fetching) const {
    Vector sums[S * R];
    TANDEM_UNROLL
    for (int i = 0; i < S * R; ++i) sums[i] = broadcast(0.0f);
    const Element* next_rows = rows + (R + column / S) * product.inner;  // one of the next tile's for each tile of columns
    int64_t at = 0;
    for (; at + kStep <= product.inner; at += kStep) {
      if (S > 1) {
        fetching.step();
        __builtin_prefetch(next_rows + at);
      }
      typename D::Factor factors[R];
      TANDEM_UNROLL
      for (int r = 0; r < R; ++r) factors[r] = D::load_factor(rows + r * product.inner + at);
      TANDEM_UNROLL
      for (int c = 0; c < S; ++c) {
        const typename D::Factor weight = D::load_factor(weights[column + c] + at);
        TANDEM_UNROLL
        for (int r = 0; r < R; ++r) sums[c * R + r] = D::multiply_add(factors[r], weight, sums[c * R + r]);
      }
    }
    if (at < product.inner) add_rest<R, S>(rows + at, column, at, sums);
    TANDEM_UNROLL
    for (int r = 0; r < R; ++r)
      TANDEM_UNROLL
      for (int c = 0; c < S; ++c) chains[r * C + c] = sums[c * R + r];
  }

  // The last elements of the inner dimension, fewer than a factor has.
  template <int R, int S>
  void add_rest(const Element* rows, int column, int64_t at, Vector* sums) const {
    const int64_t bytes = (product.inner - at) * sizeof(Element);
    alignas(64) Element row[kStep] = {}, weight[kStep] = {};
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < S; ++c) {
        std::memcpy(row, rows + r * product.inner, bytes);
        std::memcpy(weight, weights[column + c] + at, bytes);
        sums[c * R + r] = D::multiply_add(D::load_factor(row), D::load_factor(weight), sums[c * R + r]);
      }
  }

  // As many of the rows as fill groups of R, S columns at a time; then the rest.
  template <int R, int S>
  void run_groups(int64_t row, int64_t end_row, Fetching& fetching) const {
    alignas(64) float results[R][kLanes];
    for (; row + R <= end_row; row += R) {
      const Element* rows = static_cast<const Element*>(product.rows) + row * product.inner;
      for (int column = 0; column < kLanes; column += kSums / R) tile<R, S>(rows, column, results, fetching);
      for (int r = 0; r < R; ++r) put_sums<D>(product, results[r], row + r, first, static_cast<int>(present));
    }
    if constexpr (R > 1)
      if (row < end_row) run_groups<R / 2, 1>(row, end_row, fetching);
  }

  void run(int64_t row, int64_t end_row) const {
    const char* from = reinterpret_cast<const char*>(weights[0] + kLanes * product.weight_stride);
    const bool is_last = first + 2 * kLanes > product.columns;
    const int64_t num_tiles = std::max<int64_t>(1, (end_row - row) / kTileRows);
    const int lines = static_cast<int>((kTileRows + num_tiles - 1) / num_tiles);
    Fetching fetching{from, from + (is_last ? 0 : kLanes * product.weight_stride * sizeof(Element)), lines};
    run_groups<kTileRows, kSums / kTileRows>(row, end_row, fetching);
  }
};

template <class D>
void run_panel(const Product& product, int64_t column, int64_t row, int64_t end_row) {
  const int64_t end_column = std::min(column + kPanelColumns, product.columns);
  for (; column < end_column; column += kLanes) Columns<D>(product, column).run(row, end_row);
}

struct ProductWork {
  const Product* product;
  int64_t panel_rows, row_panels, total;
  std::atomic<int64_t> next;
};

inline void multiply(void* data) {
  ProductWork& work = *static_cast<ProductWork*>(data);
  const Product& product = *work.product;
  for (int64_t index = work.next++; index < work.total; index = work.next++) {
    const int64_t column = index / work.row_panels * kPanelColumns, row = index % work.row_panels * work.panel_rows;
    const int64_t end_row = std::min(row + work.panel_rows, product.num_rows);
    product.dtype == kFloat32 ? run_panel<Float32>(product, column, row, end_row)
                              : run_panel<BFloat16>(product, column, row, end_row);
  }
}

}  // namespace tandem

extern "C" {

// Multiplies; the result of a row does not depend on the threads or on other rows.
void tandem_linear(const TandemLinear* product) {
  using namespace tandem;
  if (product->num_rows == 0) return;
  const int64_t column_panels = ceil_div(product->columns, kPanelColumns);
  const int64_t wanted = column_panels < kPiecesPerThread * product->num_threads ? product->num_threads : 1;
  const int64_t panel_rows = ceil_div(ceil_div(product->num_rows, wanted), kTileRows) * kTileRows;
  const int64_t row_panels = ceil_div(product->num_rows, panel_rows);
  ProductWork work{product, panel_rows, row_panels, row_panels * column_panels, {0}};
  run_parallel(product->parallel, &multiply, &work, product->num_threads, work.total);
}

}  // extern "C"
