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
  static constexpr float kOne = 1.0f;
  // 2 * kLanes columns of a unit of rows -> as many units.
  static void zip(const float* rows, int64_t, uint32_t* out) { std::memcpy(out, rows, 2 * kLanes * sizeof(float)); }
  // A unit in each lane, from as many vectors.
  static void store_units(uint32_t* p, const Vector* x) { tandem::store(reinterpret_cast<float*>(p), x[0]); }
  // e**x for x <= 0, as exact as an element can be.
  static Vector exponential(Vector x) { return tandem::exponential(x); }
  static Vector load_values(const float* p) { return load(p); }
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
  static constexpr uint16_t kOne = 0x3f80;
  static void zip(const uint16_t* rows, int64_t row_stride, uint32_t* out) {
#if defined(TANDEM_AVX512)
    const __m512i low = _mm512_loadu_si512(rows), high = _mm512_loadu_si512(rows + row_stride);
    _mm512_storeu_si512(out, _mm512_permutex2var_epi16(low, pairs(0), high));
    _mm512_storeu_si512(out + kLanes, _mm512_permutex2var_epi16(low, pairs(kLanes), high));
#else
    for (int i = 0; i < 2 * kLanes; ++i) out[i] = rows[i] | static_cast<uint32_t>(rows[row_stride + i]) << 16;
#endif
  }
#if defined(TANDEM_AVX512)
  // Elements first .. first + 15 of one register of 32, each followed by its partner in another.
  static __m512i pairs(int first) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i from = _mm512_add_epi32(lane, _mm512_set1_epi32(first));
    return _mm512_or_si512(from, _mm512_slli_epi32(_mm512_add_epi32(from, _mm512_set1_epi32(32)), 16));
  }
#endif
  static void store_units(uint32_t* p, const Vector* x) {
#if defined(TANDEM_AVX512) && defined(__AVX512BF16__)
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i order = _mm512_or_si512(lane, _mm512_slli_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(16)), 16));
    _mm512_storeu_si512(p, _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(x[1].v, x[0].v)));
#else
    alignas(64) uint16_t low[kLanes], high[kLanes];
    store(low, x[0]), store(high, x[1]);
    for (int lane = 0; lane < kLanes; ++lane) p[lane] = low[lane] | static_cast<uint32_t>(high[lane]) << 16;
#endif
  }
  static Vector exponential(Vector x) { return short_exponential(x); }
  static Vector load_values(const uint16_t* p) { return load_bfloat16(p); }
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

// Sixteen rows of units as out[unit][row]; a width that fills no whole unit is padded with zeros.
template <class D>
void transpose_units(const typename D::Element* rows, int64_t row_stride, int width, uint32_t* out) {
  int unit = 0;
#if defined(TANDEM_AVX512)
  for (; (unit + 16) * D::kPerUnit <= width; unit += 16) {
    __m512i registers[16];
    TANDEM_UNROLL
    for (int row = 0; row < 16; ++row) registers[row] = _mm512_loadu_si512(rows + row * row_stride + unit * D::kPerUnit);
    transpose(registers);
    TANDEM_UNROLL
    for (int u = 0; u < 16; ++u) _mm512_storeu_si512(out + (unit + u) * kLanes, registers[u]);
  }
#endif
  const int units = (width + D::kPerUnit - 1) / D::kPerUnit;
  for (; unit < units; ++unit) {
    const int present = std::min(D::kPerUnit, width - unit * D::kPerUnit);
    TANDEM_UNROLL
    for (int row = 0; row < kLanes; ++row) {
      uint32_t bits = 0;
      std::memcpy(&bits, rows + row * row_stride + unit * D::kPerUnit, present * sizeof(*rows));
      out[unit * kLanes + row] = bits;
    }
  }
}

}  // namespace tandem
