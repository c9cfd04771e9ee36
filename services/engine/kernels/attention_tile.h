// What attention over a paged cache works on: a call, and tiles of its rows.
//
// A row is one (token, query head). Rows that share a KV head and a sequence form a tile, which walks the block table in
// spans of kSpan tokens at absolute positions.
#pragma once

#include <algorithm>

#include "elements.h"
#include "parallel.h"

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

constexpr int kSpan = 64;
constexpr float kLowest = -1e30f;

inline int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// One sequence, one KV head, rows [first_row, first_row + num_rows) of its tokens x group.
struct Tile {
  int sequence, kv_head, first_row, num_rows;
};

// A tile of a call, where its rows are and what they see.
template <class D>
struct TileView {
  using Element = typename D::Element;
  const Call& call;
  const Tile tile;
  const int group, units, padded_values, first_position;
  const int32_t* const table;

  TileView(const Call& c, const Tile& t)
      : call(c),
        tile(t),
        group(c.q_heads / c.kv_heads),
        units((c.key_width + D::kPerUnit - 1) / D::kPerUnit),
        padded_values(round_up(c.value_width + 1, kLanes)),
        first_position(c.context_lengths[t.sequence] - (c.query_starts[t.sequence + 1] - c.query_starts[t.sequence])),
        table(c.block_tables + t.sequence * c.table_stride) {}

  int position(int row) const { return first_position + (tile.first_row + row) / group; }
  int token_row(int row) const { return call.query_starts[tile.sequence] + (tile.first_row + row) / group; }
  int head(int row) const { return tile.kv_head * group + (tile.first_row + row) % group; }
  // Keys [low, high) are visible to a row; neither falls from row to row.
  int high(int row) const { return position(row) + 1; }
  int low(int row) const {
    const int at = position(row);
    int first = call.window > 0 ? std::max(0, at - call.window + 1) : 0;
    if (call.chunk > 0) first = std::max(first, at / call.chunk * call.chunk);
    return first;
  }

  const Element* query_of(int row) const {
    const Element* token = static_cast<const Element*>(call.query) + token_row(row) * call.query_row_stride;
    return token + head(row) * call.query_head_stride;
  }
  Element* output_of(int row) const {
    return static_cast<Element*>(call.output) + (int64_t(token_row(row)) * call.q_heads + head(row)) * call.value_width;
  }
  const Element* plane(const void* base, int64_t head_stride, int64_t token_stride, int token) const {
    const char* block = static_cast<const char*>(base) + table[token / call.block_size] * call.block_bytes;
    return reinterpret_cast<const Element*>(block) + tile.kv_head * head_stride + (token % call.block_size) * token_stride;
  }
  const Element* key(int token) const { return plane(call.keys, call.key_head_stride, call.key_token_stride, token); }
  const Element* value(int token) const { return plane(call.values, call.value_head_stride, call.value_token_stride, token); }

  void prefetch(int start, int end) const {
    for (int token = start; token < end; token += kLanes) {
      const char* k = reinterpret_cast<const char*>(key(token));
      const char* v = reinterpret_cast<const char*>(value(token));
      const int64_t key_bytes = kLanes * call.key_token_stride * sizeof(Element);
      const int64_t value_bytes = kLanes * call.value_token_stride * sizeof(Element);
      for (int64_t byte = 0; byte < key_bytes; byte += 64) __builtin_prefetch(k + byte);
      for (int64_t byte = 0; byte < value_bytes; byte += 64) __builtin_prefetch(v + byte);
    }
  }

  // K of the span's first `last` tokens (and what fills a strip) as out[strip][unit][16 tokens].
  void pack_keys(int start, int last, uint32_t* out) const {
    for (int at = 0; at < last; at += kLanes)
      transpose_units<D>(key(start + at), call.key_token_stride, call.key_width, out + size_t(at) * units);
  }

  // V of the span's tokens [begin, end) as out[unit of tokens][padded_values]; of those outside [first, last), zeros.
  void pack_values(int start, int first, int last, int begin, int end, uint32_t* out) const {
    for (int strip = begin / kLanes * kLanes; strip < end; strip += kLanes) {
      const Element* from = value(start + strip);
      const int strip_end = std::min(strip + kLanes, end);
      for (int at = std::max(strip, begin / D::kPerUnit * D::kPerUnit); at < strip_end; at += D::kPerUnit) {
        const Element* tokens = from + (at - strip) * call.value_token_stride;
        uint32_t* to = out + size_t(at / D::kPerUnit) * padded_values;
        const bool whole = at >= first && at + D::kPerUnit <= last;
        int column = 0;
        if (whole)
          for (; column + 2 * kLanes <= call.value_width; column += 2 * kLanes)
            D::zip(tokens + column, call.value_token_stride, to + column);
        if (column < call.value_width) pack_columns(tokens, column, first - at, last - at, to);
      }
    }
  }

  // The columns from `column` on, of those tokens of one unit that lie in [first, last).
  void pack_columns(const Element* tokens, int column, int first, int last, uint32_t* to) const {
    for (; column < call.value_width; ++column) {
      Element elements[D::kPerUnit];
      for (int i = 0; i < D::kPerUnit; ++i)
        elements[i] = i >= first && i < last ? tokens[i * call.value_token_stride + column] : Element(0);
      std::memcpy(to + column, elements, sizeof elements);
    }
  }

  // What stands behind the columns of V for all spans: one column of ones, whose sum is the denominator of the softmax.
  void append_ones(uint32_t* values) const {
    const Element ones[2] = {D::kOne, D::kOne};
    for (int unit = 0; unit < kSpan / D::kPerUnit; ++unit) {
      uint32_t* out = values + size_t(unit) * padded_values;
      std::fill(out + call.value_width, out + padded_values, 0u);
      std::memcpy(out + call.value_width, ones, sizeof(uint32_t));
    }
  }

  Vector score(Vector raw) const {
    const Vector x = mul(raw, broadcast(call.scaling));
    return call.softcap > 0.0f ? capped(x) : x;
  }
  __attribute__((noinline)) Vector capped(Vector x) const {
    return mul(broadcast(call.softcap), hyperbolic_tangent(div(x, broadcast(call.softcap))));
  }

  // Sixteen columns of a row's result, or those that are left, from their sums.
  void put(int row, int column, const float* sums, float denominator) const {
    const Vector x = mul(flushed(load(sums)), broadcast(1.0f / denominator));
    store_part<D>(output_of(row) + column, x, std::min(kLanes, call.value_width - column));
  }
};

}  // namespace tandem
