// Attention over a paged, block-major KV cache on CPU. No dependencies; called through a C interface.
//
// A row is one (token, query head). Rows that share a KV head and a sequence form tiles; a tile walks the
// block table in spans of 64 tokens at absolute positions:
//
//     span of K -> transposed [unit][token] -> scores -> online softmax -> accumulate with V
//
// (online softmax: Milakov and Gimelshein 2018; tiling: Dao et al. 2022). Every row sees the same operations
// in the same order whatever shares its tile: a tile shares loads only. Masked tokens have weight zero, and
// tokens that no row of the tile may see are never read into a sum, so stale memory may hold NaN.
#include <algorithm>
#include <atomic>

#include "elements.h"
#include "parallel.h"
#include "scratch.h"

namespace tandem {

constexpr int kSpan = 64;
constexpr int kStrips = kSpan / kLanes;
constexpr int kTileRows = 64;
constexpr float kLowest = -1e30f;

}  // namespace tandem

extern "C" {

// Strides count elements, except block_bytes. Mirrored by ctypes in library.py.
struct TandemAttention {
  const void* query;          // [num_rows, q_heads, key_width], last stride 1
  const void* keys;           // plane of block 0: [kv_heads, block_size, key_width]
  const void* values;         // plane of block 0: the first value_width columns are used
  void* output;               // [num_rows, q_heads, value_width], contiguous
  const float* sinks;         // [q_heads] or null
  const int32_t* query_starts;     // [num_sequences + 1]
  const int32_t* context_lengths;  // [num_sequences], new tokens included
  const int32_t* block_tables;     // [num_sequences, table_stride]
  TandemParallel parallel;         // or null
  int64_t query_row_stride, query_head_stride;
  int64_t key_head_stride, value_head_stride, key_token_stride, value_token_stride;
  int64_t block_bytes, table_stride;
  int32_t num_sequences, q_heads, kv_heads, key_width, value_width, block_size;
  int32_t window, chunk;      // 0: none
  int32_t dtype, num_threads;
  float scaling, softcap;     // softcap 0: none
};

}  // extern "C"

namespace tandem {

using Call = TandemAttention;

// One sequence, one KV head, rows [first_row, first_row + num_rows) of its tokens x group.
struct Tile {
  int sequence, kv_head, first_row, num_rows;
};

inline int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

template <class D>
struct Walk {
  using Element = typename D::Element;
  const Call& call;
  const Tile tile;
  int units, padded_values, group, first_position;
  const int32_t* table;
  uint32_t* query;   // [num_rows][units]
  uint32_t* keys;    // [kStrips][units][16]
  float* values;     // [kSpan][padded_values], used when several groups of rows share them
  float* sums;       // [num_rows][padded_values]
  float* weights;    // [4][kSpan]
  float* parts;      // [num_rows][16]: the softmax denominator, lane by lane
  float* maxima;     // [num_rows]
  bool share_values;

  Walk(const Call& c, const Tile& t, Scratch& scratch) : call(c), tile(t) {
    units = (c.key_width + D::kPerUnit - 1) / D::kPerUnit;
    padded_values = round_up(c.value_width, kLanes);
    group = c.q_heads / c.kv_heads;
    first_position = c.context_lengths[t.sequence] - (c.query_starts[t.sequence + 1] - c.query_starts[t.sequence]);
    table = c.block_tables + t.sequence * c.table_stride;
    const size_t rows = t.num_rows, width = padded_values;
    scratch.reset(4 * (rows * (units + width + kLanes + 1) + size_t(kSpan) * (units + width) + 4 * kSpan) + 1024);
    query = scratch.take<uint32_t>(rows * units);
    keys = scratch.take<uint32_t>(size_t(kSpan) * units);
    values = scratch.take<float>(kSpan * width);
    sums = scratch.take<float>(rows * width);
    weights = scratch.take<float>(4 * kSpan);
    parts = scratch.take<float>(rows * kLanes);
    maxima = scratch.take<float>(rows);
    share_values = t.num_rows > 8 || c.value_width % kLanes != 0;
  }

  int position(int row) const { return first_position + (tile.first_row + row) / group; }
  int token_row(int row) const { return call.query_starts[tile.sequence] + (tile.first_row + row) / group; }
  int head(int row) const { return tile.kv_head * group + (tile.first_row + row) % group; }
  // Keys [low, high) are visible to a row.
  int high(int row) const { return position(row) + 1; }
  int low(int row) const {
    const int at = position(row);
    int first = call.window > 0 ? std::max(0, at - call.window + 1) : 0;
    if (call.chunk > 0) first = std::max(first, at / call.chunk * call.chunk);
    return first;
  }
  template <class T>
  const T* plane(const void* base, int64_t head_stride, int64_t token_stride, int token) const {
    const char* block = static_cast<const char*>(base) + table[token / call.block_size] * call.block_bytes;
    return reinterpret_cast<const T*>(block) + tile.kv_head * head_stride + (token % call.block_size) * token_stride;
  }
  const Element* key(int token) const { return plane<Element>(call.keys, call.key_head_stride, call.key_token_stride, token); }
  const Element* value(int token) const { return plane<Element>(call.values, call.value_head_stride, call.value_token_stride, token); }

  void start() {
    for (int row = 0; row < tile.num_rows; ++row) {
      const Element* from = static_cast<const Element*>(call.query) + token_row(row) * call.query_row_stride + head(row) * call.query_head_stride;
      query[(row + 1) * units - 1] = 0;
      std::memcpy(query + row * units, from, call.key_width * sizeof(Element));
      const bool sink = call.sinks != nullptr;
      maxima[row] = sink ? call.sinks[head(row)] : kLowest;
      std::fill_n(parts + row * kLanes, kLanes, 0.0f);
      parts[row * kLanes] = sink ? 1.0f : 0.0f;
      std::fill_n(sums + row * padded_values, padded_values, 0.0f);
    }
  }

  void prefetch(int start, int end) const {
    for (int token = start; token < end; token += kLanes) {
      const char* k = reinterpret_cast<const char*>(key(token));
      const char* v = reinterpret_cast<const char*>(value(token));
      for (int64_t byte = 0; byte < kLanes * call.key_token_stride * int64_t(sizeof(Element)); byte += 64) __builtin_prefetch(k + byte);
      for (int64_t byte = 0; byte < kLanes * call.value_token_stride * int64_t(sizeof(Element)); byte += 64) __builtin_prefetch(v + byte);
    }
  }

  void widen_values(int start, int first, int last) {
    for (int j = first; j < last; ++j) {
      const Element* from = value(start + j);
      float* to = values + j * padded_values;
      int column = 0;
      for (; column + kLanes <= call.value_width; column += kLanes) store(to + column, D::load_values(from + column));
      for (; column < padded_values; ++column) to[column] = column < call.value_width ? D::to_float(from[column]) : 0.0f;
    }
  }

  // Raw scores of R rows with S strips of 16 keys -> weights[row][strip * 16].
  template <int R, int S>
  void scores(int row, int strip) {
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
      for (int s = 0; s < S; ++s) store(weights + r * kSpan + (strip + s) * kLanes, sum[r][s]);
  }

  // Turns a row's raw scores into weights; returns the factor for its earlier sums.
  float soften(int r, int row, int start, int strips) {
    const int first = low(row) - start, last = high(row) - start;
    float* w = weights + r * kSpan;
    Vector score[kStrips];
    Vector highest = broadcast(kLowest);
    for (int s = 0; s < strips; ++s) {
      Vector x = mul(load(w + s * kLanes), broadcast(call.scaling));
      if (call.softcap > 0.0f) x = mul(broadcast(call.softcap), hyperbolic_tangent(div(x, broadcast(call.softcap))));
      score[s] = select(first - s * kLanes, last - s * kLanes, x, broadcast(kLowest));
      highest = max(highest, score[s]);
    }
    const float before = maxima[row];
    const float now = std::max(before, reduce_max(highest));
    float factor = 1.0f;
    if (now != before) {
      alignas(64) float lanes[kLanes];
      store(lanes, exponential(broadcast(before - now)));
      factor = lanes[0];
    }
    maxima[row] = now;
    Vector total = mul(load(parts + row * kLanes), broadcast(factor));
    for (int s = 0; s < strips; ++s) {
      const Vector p = select(first - s * kLanes, last - s * kLanes, exponential(sub(score[s], broadcast(now))), broadcast(0.0f));
      store(w + s * kLanes, p);
      total = add(total, p);
    }
    store(parts + row * kLanes, total);
    return factor;
  }

  // sums[rows][column ..] = sums * factor + weights[first .. last) x V
  template <int R, int C, bool Shared>
  void accumulate(int row, int column, const float* factors, int start, int first, int last) {
    Vector sum[R][C];
    TANDEM_UNROLL
    for (int r = 0; r < R; ++r)
      TANDEM_UNROLL
      for (int c = 0; c < C; ++c)
        sum[r][c] = mul(load(sums + (row + r) * padded_values + column + c * kLanes), broadcast(factors[r]));
    for (int j = first; j < last;) {
      const int until = Shared ? last : std::min(last, (j / kLanes + 1) * kLanes);
      const float* shared = values + j * padded_values + column;
      const Element* own = Shared ? nullptr : value(start + j) + column;
      for (; j < until; ++j, shared += padded_values, own += Shared ? 0 : call.value_token_stride)
        TANDEM_UNROLL
        for (int c = 0; c < C; ++c) {
          const Vector v = Shared ? load(shared + c * kLanes) : D::load_values(own + c * kLanes);
          TANDEM_UNROLL
          for (int r = 0; r < R; ++r) sum[r][c] = fma(broadcast(weights[r * kSpan + j]), v, sum[r][c]);
        }
    }
    TANDEM_UNROLL
    for (int r = 0; r < R; ++r)
      TANDEM_UNROLL
      for (int c = 0; c < C; ++c) store(sums + (row + r) * padded_values + column + c * kLanes, sum[r][c]);
  }

  template <int R, bool Shared>
  void accumulate_all(int row, const float* factors, int start, int first, int last) {
    int column = 0;
    for (; column + 4 * kLanes <= padded_values; column += 4 * kLanes) accumulate<R, 4, Shared>(row, column, factors, start, first, last);
    for (; column < padded_values; column += kLanes) accumulate<R, 1, Shared>(row, column, factors, start, first, last);
  }

  // R neighbouring rows against the span at start.
  template <int R>
  void step(int row, int start) {
    const int first = std::max(0, low(row) - start), last = std::min(kSpan, high(row + R - 1) - start);
    const int strips = (last + kLanes - 1) / kLanes;
    if (strips == kStrips) {
      scores<R, kStrips>(row, 0);
    } else {
      for (int strip = 0; strip < strips; ++strip) scores<R, 1>(row, strip);
    }
    float factors[R];
    TANDEM_UNROLL
    for (int r = 0; r < R; ++r) factors[r] = soften(r, row + r, start, strips);
    if (share_values) {
      accumulate_all<R, true>(row, factors, start, first, last);
    } else {
      accumulate_all<R, false>(row, factors, start, first, last);
    }
  }

  void span(int start) {
    int begin = 0, end = tile.num_rows;
    while (begin < end && high(begin) <= start) ++begin;
    while (end > begin && low(end - 1) >= start + kSpan) --end;
    if (begin == end) return;
    const int first = std::max(0, low(begin) - start), last = std::min(kSpan, high(end - 1) - start);
    for (int strip = 0; strip * kLanes < last; ++strip)
      pack_keys<D>(key(start + strip * kLanes), call.key_token_stride, call.key_width, keys + size_t(strip) * units * kLanes);
    if (share_values) widen_values(start, first, last);
    int row = begin;
    for (; row + 4 <= end; row += 4) step<4>(row, start);
    if (end - row == 3) step<3>(row, start);
    if (end - row == 2) step<2>(row, start);
    if (end - row == 1) step<1>(row, start);
  }

  void finish() {
    for (int row = 0; row < tile.num_rows; ++row) {
      const float scale = 1.0f / reduce_add(load(parts + row * kLanes));
      Element* to = static_cast<Element*>(call.output) + (int64_t(token_row(row)) * call.q_heads + head(row)) * call.value_width;
      // + 0.0f turns -0 into 0: the only trace that a masked neighbour could leave
      for (int column = 0; column < call.value_width; ++column) D::put(to + column, sums[row * padded_values + column] * scale + 0.0f);
    }
  }

  void run() {
    start();
    const int end = high(tile.num_rows - 1);
    for (int at = low(0) / kSpan * kSpan; at < end; at += kSpan) {
      if (at + kSpan < end) prefetch(at + kSpan, std::min(end, at + 2 * kSpan));
      span(at);
    }
    finish();
  }
};

inline int tiles_of(const Call& call, int sequence) {
  const int tokens = call.query_starts[sequence + 1] - call.query_starts[sequence];
  const int rows = tokens * (call.q_heads / call.kv_heads);
  return (rows + kTileRows - 1) / kTileRows * call.kv_heads;
}

struct Work {
  const Call* call;
  std::atomic<int> next;
  int total;
};

inline void run_tile(const Call& call, int index, Scratch& scratch) {
  int sequence = 0;
  for (int count = tiles_of(call, 0); index >= count; count = tiles_of(call, ++sequence)) index -= count;
  const int rows = (call.query_starts[sequence + 1] - call.query_starts[sequence]) * (call.q_heads / call.kv_heads);
  const int first = index / call.kv_heads * kTileRows;
  const Tile tile{sequence, index % call.kv_heads, first, std::min(kTileRows, rows - first)};
  if (call.dtype == kFloat32) {
    Walk<Float32>(call, tile, scratch).run();
  } else {
    Walk<BFloat16>(call, tile, scratch).run();
  }
}

inline void work(void* data) {
  static thread_local Scratch scratch;
  Work& shared = *static_cast<Work*>(data);
  for (int index = shared.next++; index < shared.total; index = shared.next++) run_tile(*shared.call, index, scratch);
}

}  // namespace tandem

extern "C" {

// Attends; the result of a row does not depend on the threads or on other rows.
void tandem_attend(const TandemAttention* call) {
  tandem::Work shared{call, {0}, 0};
  for (int sequence = 0; sequence < call->num_sequences; ++sequence) shared.total += tandem::tiles_of(*call, sequence);
  tandem::run_parallel(call->parallel, &tandem::work, &shared, call->num_threads, shared.total);
}

// Copies rows [num_rows, heads, row_bytes] to their slots of a plane; slot = block * block_size + token.
void tandem_store(char* plane, const char* rows, const int64_t* slots, int64_t num_rows, int64_t heads, int64_t row_bytes,
                  int64_t row_stride_bytes, int64_t head_stride_bytes, int64_t block_size, int64_t block_bytes) {
  for (int64_t row = 0; row < num_rows; ++row) {
    char* to = plane + slots[row] / block_size * block_bytes + slots[row] % block_size * row_bytes;
    for (int64_t head = 0; head < heads; ++head)
      std::memcpy(to + head * block_size * row_bytes, rows + row * row_stride_bytes + head * head_stride_bytes, row_bytes);
  }
}

const char* tandem_instruction_set() {
#if defined(TANDEM_AVX512) && defined(__AVX512BF16__)
  return "avx512_bf16";
#elif defined(TANDEM_AVX512)
  return "avx512";
#elif defined(TANDEM_AVX2)
  return "avx2";
#else
  return "portable";
#endif
}

}  // extern "C"
