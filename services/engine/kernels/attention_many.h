// Attention of many rows: sixteen rows side by side in a register, up to kBundles registers of them at a time.
//
//     Q -> [unit][rows], K -> [unit][keys]:  scores[key][rows] -> online softmax -> weights[unit of keys][rows]
//     weights x V[unit of keys][column] -> sums[column][rows]
//
// A row sees the operations of attention_few.h in the same order, so that its bits are the same.
#pragma once

#include "attention_tile.h"
#include "scratch.h"

namespace tandem {

#if defined(TANDEM_AVX512)
constexpr int kBundles = 3, kTileKeys = 8;
#else
constexpr int kBundles = 1, kTileKeys = 4;
#endif
constexpr int kGroupRows = kBundles * kLanes;

template <class D>
struct ManyRows : TileView<D> {
  using View = TileView<D>;
  using Element = typename D::Element;
  using View::call, View::tile, View::units, View::padded_values, View::low, View::high;

  // Rows [first_row, first_row + num_rows) of the tile, in as many bundles as they fill.
  struct Group {
    int first_row, num_rows, bundles;
    uint32_t* query;  // [bundles][units][16]
    float* sums;      // [value_width + 1][bundles][16]
    float* maxima;    // [bundles][16]
    float* lows;      // [bundles][16]: the keys that a row sees; none for rows that fill a bundle up
    float* highs;     // [bundles][16]
  };

  int num_groups;
  Group* groups;
  uint32_t* gathered;  // [16][units]: a bundle of Q on its way
  uint32_t* keys;      // [kSpan / 16][units][16]
  uint32_t* values;    // [kSpan / kPerUnit][padded_values]
  float* scores;       // [kSpan][bundles][16]; later weights, in units of keys

  ManyRows(const Call& c, const Tile& t, Scratch& scratch) : View(c, t) {
    num_groups = (t.num_rows + kGroupRows - 1) / kGroupRows;
    const size_t width = padded_values, rows = size_t(num_groups) * kGroupRows;
    const size_t shared = size_t(kLanes) * units + size_t(kSpan) * (units + width + kGroupRows);
    scratch.reset(4 * (rows * (units + width + 3) + shared) + num_groups * sizeof(Group) + 8192);
    groups = scratch.take<Group>(num_groups);
    gathered = scratch.take<uint32_t>(size_t(kLanes) * units);
    keys = scratch.take<uint32_t>(size_t(kSpan) * units);
    values = scratch.take<uint32_t>(kSpan / D::kPerUnit * width);
    scores = scratch.take<float>(kSpan * kGroupRows);
    for (int i = 0; i < num_groups; ++i) {
      const int first = i * kGroupRows, count = std::min(kGroupRows, t.num_rows - first);
      const int bundles = (count + kLanes - 1) / kLanes, padded = bundles * kLanes;
      groups[i] = {first, count, bundles, scratch.take<uint32_t>(size_t(padded) * units), scratch.take<float>(padded * width),
                   scratch.take<float>(padded), scratch.take<float>(padded), scratch.take<float>(padded)};
    }
  }

  void start() {
    this->append_ones(values);
    for (int i = 0; i < num_groups; ++i) start(groups[i]);
  }

  void start(const Group& group) {
    const int padded = group.bundles * kLanes;
    std::fill_n(group.sums, size_t(padded) * (call.value_width + 1), 0.0f);
    for (int bundle = 0; bundle < group.bundles; ++bundle) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const int at = bundle * kLanes + lane, row = group.first_row + at;
        const bool exists = at < group.num_rows, sink = exists && call.sinks != nullptr;
        group.maxima[at] = sink ? call.sinks[this->head(row)] : kLowest;
        group.sums[call.value_width * padded + at] = sink ? 1.0f : 0.0f;
        group.lows[at] = exists ? static_cast<float>(low(row)) : 0.0f;
        group.highs[at] = exists ? static_cast<float>(high(row)) : 0.0f;
      }
      pack_query(group, bundle);
    }
  }

  void pack_query(const Group& group, int bundle) {
    const int width = units * D::kPerUnit;
    std::fill_n(gathered, kLanes * units, 0u);
    const int first_row = group.first_row + bundle * kLanes, present = std::min(kLanes, group.num_rows - bundle * kLanes);
    for (int lane = 0; lane < present; ++lane)
      std::memcpy(gathered + lane * units, this->query_of(first_row + lane), call.key_width * sizeof(Element));
    uint32_t* packed = group.query + size_t(bundle) * units * kLanes;
    transpose_units<D>(reinterpret_cast<const Element*>(gathered), width, width, packed);
  }

  // x where a row sees the key, elsewhere y.
  static Vector where_visible(const Group& group, int bundle, int key, Vector x, Vector y) {
    const Vector at = broadcast(static_cast<float>(key));
    const Vector seen = where_negative(sub(at, load(group.highs + bundle * kLanes)), x, y);
    return where_negative(sub(at, load(group.lows + bundle * kLanes)), y, seen);
  }

  // Scores of B bundles with kTileKeys keys of the span -> scores[key]; `highest` grows.
  template <int B, bool Masked>
  void multiply(const Group& group, int start, int key, Vector* highest) {
    Vector sum[kTileKeys][B];
    TANDEM_UNROLL
    for (int j = 0; j < kTileKeys; ++j)
      TANDEM_UNROLL
      for (int b = 0; b < B; ++b) sum[j][b] = broadcast(0.0f);
    const uint32_t* k = keys + size_t(key / kLanes) * units * kLanes + key % kLanes;
    for (int unit = 0; unit < units; ++unit, k += kLanes)
      TANDEM_UNROLL
      for (int j = 0; j < kTileKeys; ++j)
        TANDEM_UNROLL
        for (int b = 0; b < B; ++b) sum[j][b] = D::dot(sum[j][b], k + j, group.query + (size_t(b) * units + unit) * kLanes);
    TANDEM_UNROLL
    for (int j = 0; j < kTileKeys; ++j)
      TANDEM_UNROLL
      for (int b = 0; b < B; ++b) {
        Vector x = this->score(sum[j][b]);
        if (Masked) x = where_visible(group, b, start + key + j, x, broadcast(kLowest));
        highest[b] = max(highest[b], x);
        store(scores + ((key + j) * B + b) * kLanes, x);
      }
  }

  // Turns scores of keys [first, last) into weights; returns the factor for earlier sums. Keys come in whole units.
  template <int B, bool Masked>
  Vector soften(const Group& group, int bundle, int start, int first, int last, Vector highest) {
    float* maxima = group.maxima + bundle * kLanes;
    const Vector before = load(maxima), now = max(before, highest);
    store(maxima, now);
    uint32_t* weights = reinterpret_cast<uint32_t*>(scores);
    for (int key = first; key < last; key += D::kPerUnit) {
      Vector weight[D::kPerUnit];
      for (int i = 0; i < D::kPerUnit; ++i) {
        weight[i] = D::exponential(sub(load(scores + ((key + i) * B + bundle) * kLanes), now));
        if (Masked) weight[i] = where_visible(group, bundle, start + key + i, weight[i], broadcast(0.0f));
      }
      D::store_units(weights + (key / D::kPerUnit * B + bundle) * kLanes, weight);
    }
    return D::exponential(sub(before, now));
  }

  // sums[column ..][rows] = sums * factor + weights of units [first, last) x V
  template <int B, int C>
  void accumulate(const Group& group, int column, const Vector* factors, int first, int last) {
    Vector sum[C][B];
    float* sums = group.sums + size_t(column) * B * kLanes;
    TANDEM_UNROLL
    for (int c = 0; c < C; ++c)
      TANDEM_UNROLL
      for (int b = 0; b < B; ++b) sum[c][b] = mul(load(sums + (c * B + b) * kLanes), factors[b]);
    const uint32_t* v = values + size_t(first) * padded_values + column;
    const uint32_t* weights = reinterpret_cast<const uint32_t*>(scores) + size_t(first) * B * kLanes;
    for (int unit = first; unit < last; ++unit, v += padded_values, weights += B * kLanes)
      TANDEM_UNROLL
      for (int c = 0; c < C; ++c)
        TANDEM_UNROLL
        for (int b = 0; b < B; ++b) sum[c][b] = D::dot(sum[c][b], v + c, weights + b * kLanes);
    TANDEM_UNROLL
    for (int c = 0; c < C; ++c)
      TANDEM_UNROLL
      for (int b = 0; b < B; ++b) store(sums + (c * B + b) * kLanes, sum[c][b]);
  }

  template <int B, bool Masked>
  void step(const Group& group, int start, int first, int last) {
    Vector highest[B], factors[B];
    for (int b = 0; b < B; ++b) highest[b] = broadcast(kLowest);
    first = first / kTileKeys * kTileKeys, last = round_up(last, kTileKeys);
    for (int key = first; key < last; key += kTileKeys) multiply<B, Masked>(group, start, key, highest);
    for (int b = 0; b < B; ++b) factors[b] = soften<B, Masked>(group, b, start, first, last, highest[b]);
    int column = 0;
    for (; column + kTileKeys <= call.value_width; column += kTileKeys)
      accumulate<B, kTileKeys>(group, column, factors, first / D::kPerUnit, last / D::kPerUnit);
    for (; column <= call.value_width; ++column) accumulate<B, 1>(group, column, factors, first / D::kPerUnit, last / D::kPerUnit);
  }

  template <int B>
  void step(const Group& group, int start) {
    const int end_row = group.first_row + group.num_rows - 1;
    const int first = std::max(0, low(group.first_row) - start), last = std::min(kSpan, high(end_row) - start);
    if (first >= last) return;
    const bool all_see_all = group.num_rows == B * kLanes && low(end_row) <= start && high(group.first_row) >= start + kSpan;
    all_see_all ? step<B, false>(group, start, 0, kSpan) : step<B, true>(group, start, first, last);
  }

  void span(int start) {
    const int first = std::max(0, low(0) - start), last = std::min(kSpan, high(tile.num_rows - 1) - start);
    this->pack_keys(start, last, keys);
    const int first_key = first / kTileKeys * kTileKeys, last_key = std::min(kSpan, round_up(last, kTileKeys));
    this->pack_values(start, first, last, first_key, last_key, values);
    for (int i = 0; i < num_groups; ++i) {
      const Group& group = groups[i];
      if (group.bundles == 1) step<1>(group, start);
      if constexpr (kBundles > 1) {
        if (group.bundles == 2) step<2>(group, start);
        if (group.bundles == 3) step<3>(group, start);
      }
    }
  }

  void finish() {
    for (int i = 0; i < num_groups; ++i)
      for (int bundle = 0; bundle < groups[i].bundles; ++bundle) finish(groups[i], bundle);
  }

  void finish(const Group& group, int bundle) {
    alignas(64) float rows[kLanes][kLanes];
    const int stride = group.bundles * kLanes;
    const float* sums = group.sums + bundle * kLanes;
    const int count = std::min(kLanes, group.num_rows - bundle * kLanes);
    for (int column = 0; column < call.value_width; column += kLanes) {
      transpose_units<Float32>(sums + column * stride, stride, kLanes, reinterpret_cast<uint32_t*>(rows));
      for (int lane = 0; lane < count; ++lane)
        this->put(group.first_row + bundle * kLanes + lane, column, rows[lane], sums[call.value_width * stride + lane]);
    }
  }
};

}  // namespace tandem
