// Attention of few rows: sixteen keys side by side in a register.
//
//     span of K -> [unit][16 keys] -> scores -> online softmax -> [unit of keys] -> accumulate with V
#pragma once

#include "attention_tile.h"
#include "scratch.h"

namespace tandem {

constexpr int kStrips = kSpan / kLanes;

template <class D>
struct FewRows : TileView<D> {
  using View = TileView<D>;
  using Element = typename D::Element;
  using View::call, View::tile, View::units, View::padded_values, View::low, View::high;
  static constexpr int kWeightUnits = kSpan / D::kPerUnit;

  uint32_t* query;    // [num_rows][units]
  uint32_t* keys;     // [kStrips][units][16]
  uint32_t* values;   // [kWeightUnits][padded_values]
  float* sums;        // [num_rows][padded_values]
  float* scores;      // [4][kSpan]
  uint32_t* weights;  // [4][kWeightUnits]
  float* maxima;      // [num_rows]

  FewRows(const Call& c, const Tile& t, Scratch& scratch) : View(c, t) {
    const size_t rows = t.num_rows, width = padded_values;
    scratch.reset(4 * (rows * (units + width + 1) + size_t(kSpan) * (units + width) + 8 * kSpan) + 1024);
    query = scratch.take<uint32_t>(rows * units);
    keys = scratch.take<uint32_t>(size_t(kSpan) * units);
    values = scratch.take<uint32_t>(kWeightUnits * width);
    sums = scratch.take<float>(rows * width);
    scores = scratch.take<float>(4 * kSpan);
    weights = scratch.take<uint32_t>(4 * kWeightUnits);
    maxima = scratch.take<float>(rows);
  }

  void start() {
    this->append_ones(values);
    const bool sink = call.sinks != nullptr;
    for (int row = 0; row < tile.num_rows; ++row) {
      query[(row + 1) * units - 1] = 0;
      std::memcpy(query + row * units, this->query_of(row), call.key_width * sizeof(Element));
      maxima[row] = sink ? call.sinks[this->head(row)] : kLowest;
      std::fill_n(sums + row * padded_values, padded_values, 0.0f);
      sums[row * padded_values + call.value_width] = sink ? 1.0f : 0.0f;
    }
  }

  // Raw scores of R rows with S strips of 16 keys -> scores[row][strip * 16].
  template <int R, int S>
  void multiply(int row, int strip) {
    Vector sum[R][S];
    TANDEM_UNROLL
    for (int r = 0; r < R; ++r)
      TANDEM_UNROLL
      for (int s = 0; s < S; ++s) sum[r][s] = broadcast(0.0f);
    const uint32_t* q = query + row * units;
    const uint32_t* k = keys + size_t(strip) * units * kLanes;
    for (int unit = 0; unit < units; ++unit)
      TANDEM_UNROLL
      for (int s = 0; s < S; ++s)
        TANDEM_UNROLL
        for (int r = 0; r < R; ++r) sum[r][s] = D::dot(sum[r][s], q + r * units + unit, k + (size_t(s) * units + unit) * kLanes);
    TANDEM_UNROLL
    for (int r = 0; r < R; ++r)
      TANDEM_UNROLL
      for (int s = 0; s < S; ++s) store(scores + r * kSpan + (strip + s) * kLanes, sum[r][s]);
  }

  // Turns a row's raw scores into weights; returns the factor for its earlier sums.
  float soften(int r, int row, int start, int strips) {
    const int first = low(row) - start, last = high(row) - start;
    Vector score[kStrips];
    Vector highest = broadcast(kLowest);
    for (int s = 0; s < strips; ++s) {
      const Vector x = this->score(load(scores + r * kSpan + s * kLanes));
      score[s] = select(first - s * kLanes, last - s * kLanes, x, broadcast(kLowest));
      highest = max(highest, score[s]);
    }
    const float before = maxima[row];
    const float now = maxima[row] = std::max(before, reduce_max(highest));
    Element* to = reinterpret_cast<Element*>(weights + r * kWeightUnits);
    for (int s = 0; s < strips; ++s) {
      const Vector weight = D::exponential(sub(score[s], broadcast(now)));
      D::store(to + s * kLanes, select(first - s * kLanes, last - s * kLanes, weight, broadcast(0.0f)));
    }
    if (now == before) return 1.0f;
    alignas(64) float lanes[kLanes];
    store(lanes, D::exponential(broadcast(before - now)));
    return lanes[0];
  }

  // sums[rows][column ..] = sums * factor + weights of units [first, last) x V
  template <int R, int C>
  void accumulate(int row, int column, const float* factors, int first, int last) {
    Vector sum[R][C];
    TANDEM_UNROLL
    for (int r = 0; r < R; ++r)
      TANDEM_UNROLL
      for (int c = 0; c < C; ++c)
        sum[r][c] = mul(load(sums + (row + r) * padded_values + column + c * kLanes), broadcast(factors[r]));
    const uint32_t* v = values + size_t(first) * padded_values + column;
    for (int unit = first; unit < last; ++unit, v += padded_values)
      TANDEM_UNROLL
      for (int c = 0; c < C; ++c)
        TANDEM_UNROLL
        for (int r = 0; r < R; ++r) sum[r][c] = D::dot(sum[r][c], weights + r * kWeightUnits + unit, v + c * kLanes);
    TANDEM_UNROLL
    for (int r = 0; r < R; ++r)
      TANDEM_UNROLL
      for (int c = 0; c < C; ++c) store(sums + (row + r) * padded_values + column + c * kLanes, sum[r][c]);
  }

  // R neighbouring rows against the span at start.
  template <int R>
  void step(int row, int start) {
    const int first = std::max(0, low(row) - start), last = std::min(kSpan, high(row + R - 1) - start);
    const int strips = (last + kLanes - 1) / kLanes;
    if (strips == kStrips) {
      multiply<R, kStrips>(row, 0);
    } else {
      for (int strip = 0; strip < strips; ++strip) multiply<R, 1>(row, strip);
    }
    float factors[R];
    TANDEM_UNROLL
    for (int r = 0; r < R; ++r) factors[r] = soften(r, row + r, start, strips);
    const int first_unit = first / D::kPerUnit, last_unit = (last + D::kPerUnit - 1) / D::kPerUnit;
    int column = 0;
    for (; padded_values - column > 5 * kLanes; column += 4 * kLanes)
      accumulate<R, 4>(row, column, factors, first_unit, last_unit);
    if (padded_values - column == 5 * kLanes) return accumulate<R, 5>(row, column, factors, first_unit, last_unit);
    for (; column < padded_values; column += kLanes) accumulate<R, 1>(row, column, factors, first_unit, last_unit);
  }

  void span(int start) {
    int begin = 0, end = tile.num_rows;
    while (begin < end && high(begin) <= start) ++begin;
    while (end > begin && low(end - 1) >= start + kSpan) --end;
    if (begin == end) return;
    const int first = std::max(0, low(begin) - start), last = std::min(kSpan, high(end - 1) - start);
    this->pack_keys(start, last, keys);
    this->pack_values(start, first, last, first, last, values);
    int row = begin;
    for (; row + 4 <= end; row += 4) step<4>(row, start);
    if (end - row == 3) step<3>(row, start);
    if (end - row == 2) step<2>(row, start);
    if (end - row == 1) step<1>(row, start);
  }

  void finish() {
    for (int row = 0; row < tile.num_rows; ++row) {
      const float* from = sums + row * padded_values;
      for (int column = 0; column < call.value_width; column += kLanes)
        this->put(row, column, from + column, from[call.value_width]);
    }
  }
};

}  // namespace tandem
