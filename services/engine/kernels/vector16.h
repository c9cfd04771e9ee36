// Sixteen floats as one value: AVX-512, AVX2 with FMA, or portable C++.
//
// Every operation is the same for each lane and never depends on neighbours, so a row's result depends on
// the row alone. Compile with -ffp-contract=off: the compiler must not choose per call site what to fuse.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define TANDEM_AVX512 1
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__)
#define TANDEM_AVX2 1
#include <immintrin.h>
#endif

// Small arrays of vectors live in registers only if the loops over them vanish.
#if defined(TANDEM_AVX512) || defined(TANDEM_AVX2)
#define TANDEM_UNROLL _Pragma("GCC unroll 16")
#else
#define TANDEM_UNROLL
#endif

namespace tandem {

constexpr int kLanes = 16;

#if defined(TANDEM_AVX512)

struct Vector {
  __m512 v;
};
inline Vector load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Vector a) { _mm512_storeu_ps(p, a.v); }
inline Vector broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Vector add(Vector a, Vector b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vector sub(Vector a, Vector b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vector mul(Vector a, Vector b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vector div(Vector a, Vector b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vector max(Vector a, Vector b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vector fma(Vector a, Vector b, Vector c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vector round(Vector a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vector times_power_of_two(Vector a, Vector n) { return {_mm512_scalef_ps(a.v, n.v)}; }
inline float reduce_max(Vector a) { return _mm512_reduce_max_ps(a.v); }
inline float reduce_add(Vector a) { return _mm512_reduce_add_ps(a.v); }
// a where x is negative, elsewhere b.
inline Vector where_negative(Vector x, Vector a, Vector b) {
  return {_mm512_mask_mov_ps(b.v, _mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_LT_OQ), a.v)};
}
// Lanes [first, last) of a, the others of b.
inline Vector select(int first, int last, Vector a, Vector b) {
  __mmask16 below_last = static_cast<__mmask16>(last >= 16 ? 0xffff : (last <= 0 ? 0 : (1u << last) - 1));
  __mmask16 below_first = static_cast<__mmask16>(first >= 16 ? 0xffff : (first <= 0 ? 0 : (1u << first) - 1));
  return {_mm512_mask_mov_ps(b.v, static_cast<__mmask16>(below_last & ~below_first), a.v)};
}
inline Vector load_bfloat16(const uint16_t* p) {
  __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))};
}
inline Vector low_halves(const uint32_t* p) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))}; }
inline Vector high_halves(const uint32_t* p) {
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}

#elif defined(TANDEM_AVX2)

struct Vector {
  __m256 a, b;
};
inline Vector load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Vector x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
inline Vector broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Vector add(Vector x, Vector y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Vector sub(Vector x, Vector y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Vector mul(Vector x, Vector y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Vector div(Vector x, Vector y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline Vector max(Vector x, Vector y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Vector fma(Vector x, Vector y, Vector z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline Vector round(Vector x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
inline __m256 power_of_two(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline Vector times_power_of_two(Vector x, Vector n) {
  return {_mm256_mul_ps(x.a, power_of_two(n.a)), _mm256_mul_ps(x.b, power_of_two(n.b))};
}
inline float reduce_max(Vector x) {
  alignas(32) float lanes[kLanes];
  store(lanes, x);
  float result = lanes[0];
  for (int i = 1; i < kLanes; ++i) result = lanes[i] > result ? lanes[i] : result;
  return result;
}
inline float reduce_add(Vector x) {
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, _mm256_add_ps(x.a, x.b));
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}
inline __m256 where_negative(__m256 x, __m256 a, __m256 b) {
  return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
}
inline Vector where_negative(Vector x, Vector a, Vector b) { return {where_negative(x.a, a.a, b.a), where_negative(x.b, a.b, b.b)}; }
inline __m256 lane_mask(int first, int last) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256i low = _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(first - 1));
  __m256i high = _mm256_cmpgt_epi32(_mm256_set1_epi32(last), lane);
  return _mm256_castsi256_ps(_mm256_and_si256(low, high));
}
inline Vector select(int first, int last, Vector x, Vector y) {
  return {_mm256_blendv_ps(y.a, x.a, lane_mask(first, last)), _mm256_blendv_ps(y.b, x.b, lane_mask(first - 8, last - 8))};
}
inline __m256 widen(__m128i raw) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16)); }
inline Vector load_bfloat16(const uint16_t* p) {
  return {widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline Vector low_halves(const uint32_t* p) {
  const __m256i* raw = reinterpret_cast<const __m256i*>(p);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(raw), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(raw + 1), 16))};
}
inline Vector high_halves(const uint32_t* p) {
  const __m256i* raw = reinterpret_cast<const __m256i*>(p);
  const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(raw), mask)),
          _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256(raw + 1), mask))};
}

#else

struct Vector {
  float v[kLanes];
};
template <class Function>
inline Vector each(Function function) {
  Vector result;
  for (int i = 0; i < kLanes; ++i) result.v[i] = function(i);
  return result;
}
inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline Vector load(const float* p) { return each([=](int i) { return p[i]; }); }
inline void store(float* p, const Vector& a) { std::memcpy(p, a.v, sizeof a.v); }
inline Vector broadcast(float x) { return each([=](int) { return x; }); }
inline Vector add(const Vector& a, const Vector& b) { return each([&](int i) { return a.v[i] + b.v[i]; }); }
inline Vector sub(const Vector& a, const Vector& b) { return each([&](int i) { return a.v[i] - b.v[i]; }); }
inline Vector mul(const Vector& a, const Vector& b) { return each([&](int i) { return a.v[i] * b.v[i]; }); }
inline Vector div(const Vector& a, const Vector& b) { return each([&](int i) { return a.v[i] / b.v[i]; }); }
inline Vector max(const Vector& a, const Vector& b) { return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline Vector fma(const Vector& a, const Vector& b, const Vector& c) { return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; }); }
inline Vector round(const Vector& a) { return each([&](int i) { return std::nearbyintf(a.v[i]); }); }
inline Vector times_power_of_two(const Vector& a, const Vector& n) {
  return each([&](int i) { return a.v[i] * from_bits(static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23); });
}
inline float reduce_max(const Vector& a) {
  float result = a.v[0];
  for (int i = 1; i < kLanes; ++i) result = a.v[i] > result ? a.v[i] : result;
  return result;
}
inline float reduce_add(const Vector& a) {
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = (a.v[i] + a.v[i + 8]) + (a.v[i + 4] + a.v[i + 12]);
  return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}
inline Vector where_negative(const Vector& x, const Vector& a, const Vector& b) {
  return each([&](int i) { return x.v[i] < 0.0f ? a.v[i] : b.v[i]; });
}
inline Vector select(int first, int last, const Vector& a, const Vector& b) {
  return each([&](int i) { return i >= first && i < last ? a.v[i] : b.v[i]; });
}
inline Vector load_bfloat16(const uint16_t* p) { return each([=](int i) { return from_bits(static_cast<uint32_t>(p[i]) << 16); }); }
inline Vector low_halves(const uint32_t* p) { return each([=](int i) { return from_bits(p[i] << 16); }); }
inline Vector high_halves(const uint32_t* p) { return each([=](int i) { return from_bits(p[i] & 0xffff0000u); }); }

#endif

// The sum of each of sixteen vectors, every one in the order of reduce_add: lanes eight, four, two and one apart.
inline void reduce_add_each(const Vector* a, float* sums) {
#if defined(TANDEM_AVX512)
  __m512 t[16];
  TANDEM_UNROLL
  for (int i = 0; i < 8; ++i)
    t[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[i].v, a[i + 8].v, 0x44), _mm512_shuffle_f32x4(a[i].v, a[i + 8].v, 0xee));
  TANDEM_UNROLL
  for (int i = 0; i < 4; ++i)
    t[i] = _mm512_add_ps(_mm512_shuffle_f32x4(t[i], t[i + 4], 0x88), _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd));
  TANDEM_UNROLL
  for (int i = 0; i < 2; ++i)
    t[i] = _mm512_add_ps(_mm512_shuffle_ps(t[i], t[i + 2], 0x44), _mm512_shuffle_ps(t[i], t[i + 2], 0xee));
  t[0] = _mm512_add_ps(_mm512_shuffle_ps(t[0], t[1], 0x88), _mm512_shuffle_ps(t[0], t[1], 0xdd));
  const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
  _mm512_storeu_ps(sums, _mm512_permutexvar_ps(order, t[0]));
#else
  for (int i = 0; i < kLanes; ++i) sums[i] = reduce_add(a[i]);
#endif
}

// e**x for x <= 0 with exp(0) == 1 exactly; below -87 it stays at e**-87. Polynomial of Cephes' expf.
inline Vector exponential(Vector x) {
  x = max(x, broadcast(-87.0f));
  const Vector n = round(mul(x, broadcast(1.44269504088896341f)));
  const Vector r = fma(n, broadcast(2.12194440e-4f), fma(n, broadcast(-0.693359375f), x));
  Vector p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), broadcast(1.0f));
  return times_power_of_two(p, n);
}

// e**x for x <= 0 with exp(0) == 1 exactly and a relative error of 5e-6, far below what bfloat16 keeps.
inline Vector short_exponential(Vector x) {
  const Vector t = mul(max(x, broadcast(-87.0f)), broadcast(1.44269504088896341f));
  const Vector n = round(t);
  const Vector r = sub(t, n);
  Vector p = broadcast(9.58285e-3f);
  p = fma(p, r, broadcast(5.590642e-2f));
  p = fma(p, r, broadcast(2.4024099e-1f));
  p = fma(p, r, broadcast(6.9312419e-1f));
  p = fma(p, r, broadcast(1.0f));
  return times_power_of_two(p, n);
}

// x without what single precision holds only as a denormal number: dot products of bfloat16 may or may not flush those.
inline Vector flushed(Vector x) {
  const Vector magnitude = max(x, sub(broadcast(0.0f), x));
  return where_negative(sub(magnitude, broadcast(1.17549435e-38f)), broadcast(0.0f), x);
}

// x / (1 + e**-x), by the exponential of -|x|.
inline Vector sigmoid_linear_unit(Vector x) {
  const Vector zero = broadcast(0.0f), one = broadcast(1.0f);
  const Vector magnitude = max(x, sub(zero, x));
  const Vector e = exponential(sub(zero, magnitude));
  return div(mul(x, where_negative(x, e, one)), add(one, e));
}

// tanh by the exponential of -2|x|.
inline Vector hyperbolic_tangent(Vector x) {
  const Vector zero = broadcast(0.0f), one = broadcast(1.0f);
  const Vector magnitude = max(x, sub(zero, x));
  const Vector t = exponential(mul(broadcast(-2.0f), magnitude));
  const Vector result = div(sub(one, t), add(one, t));
  // sign(x) as x / |x|, and 0 where x is 0
  const Vector sign = div(x, max(magnitude, broadcast(1e-38f)));
  return mul(result, sign);
}

}  // namespace tandem
