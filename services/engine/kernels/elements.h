// The element types of weights, rows and a KV cache: how they are read, multiplied and laid out for sixteen at a time.
#pragma once

#include <algorithm>

#include "vector16.h"

namespace tandem {

// How an element type is held in the cache, and how two runs of it are multiplied. A unit is 32 bits: one
// float, or a pair of bfloat16.
struct Float32 {
  using Element = float;
  static constexpr int kPerUnit = 1;
  // Sixteen units as a factor of a product, and sum + a x b in each lane.
  using Factor = Vector;
  static Factor load_factor(const float* p) { return load(p); }
  static Vector multiply_add(const Factor& a, const Factor& b, Vector sum) { return fma(a, b, sum); }
  static Vector dot(Vector sum, const uint32_t* query, const uint32_t* keys) {
    return fma(broadcast(*reinterpret_cast<const float*>(query)), load(reinterpret_cast<const float*>(keys)), sum);
  }
  static Vector load_values(const float* p) { return load(p); }
  static float to_float(float x) { return x; }
  static void put(float* p, float x) { *p = x; }
  static void store(float* p, Vector x) { tandem::store(p, x); }
};

struct BFloat16 {
  using Element = uint16_t;
  static constexpr int kPerUnit = 2;
#if defined(TANDEM_AVX512) && defined(__AVX512BF16__)
  using Factor = __m512i;
  static Factor load_factor(const uint16_t* p) { return _mm512_loadu_si512(p); }
  static Vector multiply_add(const Factor& a, const Factor& b, Vector sum) {
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)a, (__m512bh)b)};
  }
#else
  struct Factor {
    Vector low, high;
  };
  static Factor load_factor(const uint16_t* p) {
    const uint32_t* units = reinterpret_cast<const uint32_t*>(p);
    return {low_halves(units), high_halves(units)};
  }
  static Vector multiply_add(const Factor& a, const Factor& b, Vector sum) {
    return fma(a.high, b.high, fma(a.low, b.low, sum));
  }
#endif
  static Vector dot(Vector sum, const uint32_t* query, const uint32_t* keys) {
#if defined(TANDEM_AVX512) && defined(__AVX512BF16__)
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)_mm512_set1_epi32(static_cast<int>(*query)), (__m512bh)_mm512_loadu_si512(keys))};
#else
    const uint32_t low = *query << 16, high = *query & 0xffff0000u;
    sum = fma(broadcast(*reinterpret_cast<const float*>(&low)), low_halves(keys), sum);
    return fma(broadcast(*reinterpret_cast<const float*>(&high)), high_halves(keys), sum);
#endif
  }
  static Vector load_values(const uint16_t* p) { return load_bfloat16(p); }
  static float to_float(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    return *reinterpret_cast<const float*>(&bits);
  }
  static void put(uint16_t* p, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    *p = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
  static void store(uint16_t* p, Vector x) {
#if defined(TANDEM_AVX512) && defined(__AVX512BF16__)
    const __m256bh rounded = _mm512_cvtneps_pbh(x.v);
    std::memcpy(p, &rounded, sizeof rounded);
#else
    alignas(64) float lanes[kLanes];
    tandem::store(lanes, x);
    for (int lane = 0; lane < kLanes; ++lane) put(p + lane, lanes[lane]);
#endif
  }
};

// The first `present` of sixteen elements; zeros behind them.
template <class D>
Vector load_part(const typename D::Element* p, int present) {
  if (present == kLanes) return D::load_values(p);
  alignas(64) typename D::Element lanes[kLanes] = {};
  std::memcpy(lanes, p, present * sizeof(*p));
  return D::load_values(lanes);
}

template <class D>
void store_part(typename D::Element* p, Vector x, int present) {
  if (present == kLanes) return D::store(p, x);
  alignas(64) typename D::Element lanes[kLanes];
  D::store(lanes, x);
  std::memcpy(p, lanes, present * sizeof(*p));
}

// What is left of x when it is stored as an element.
template <class D>
Vector rounded(Vector x) {
  alignas(64) typename D::Element lanes[kLanes];
  D::store(lanes, x);
  return D::load_values(lanes);
}

#if defined(TANDEM_AVX512)
// rows[i] = 16 units of token i  ->  rows[u] = unit u of 16 tokens
inline void transpose(__m512i rows[16]) {
  __m512i t[16];
  TANDEM_UNROLL
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  TANDEM_UNROLL
  for (int i = 0; i < 16; i += 4) {
    rows[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  TANDEM_UNROLL
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xdd);
  }
  TANDEM_UNROLL
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    rows[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    rows[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    rows[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}
#endif

// Sixteen tokens of K as out[unit][token]; a width that fills no whole unit is padded with zeros. The sixteen
// behind them are fetched ahead if they are read next.
template <class D, bool FetchAhead = false>
void pack_keys(const typename D::Element* keys, int64_t token_stride, int width, uint32_t* out) {
  int unit = 0;
#if defined(TANDEM_AVX512)
  for (; (unit + 16) * D::kPerUnit <= width; unit += 16) {
    __m512i rows[16];
    TANDEM_UNROLL
    for (int token = 0; token < 16; ++token) {
      const auto* from = keys + token * token_stride + unit * D::kPerUnit;
      rows[token] = _mm512_loadu_si512(from);
      if (FetchAhead) __builtin_prefetch(from + 16 * token_stride);
    }
    transpose(rows);
    TANDEM_UNROLL
    for (int u = 0; u < 16; ++u) _mm512_storeu_si512(out + (unit + u) * kLanes, rows[u]);
  }
#endif
  const int units = (width + D::kPerUnit - 1) / D::kPerUnit;
  for (; unit < units; ++unit) {
    const int present = std::min(D::kPerUnit, width - unit * D::kPerUnit);
    TANDEM_UNROLL
    for (int token = 0; token < kLanes; ++token) {
      uint32_t bits = 0;
      std::memcpy(&bits, keys + token * token_stride + unit * D::kPerUnit, present * sizeof(*keys));
      out[unit * kLanes + token] = bits;
    }
  }
}

}  // namespace tandem
