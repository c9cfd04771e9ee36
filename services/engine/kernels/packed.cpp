// Products with weights that stay quantised in memory: bitwise those of linear.cpp with the same weights in bfloat16.
//
// A weight is bfloat16(scale * quant + minimum), each step rounded as float32: what the conversion of a GGUF file
// gives. Thirty-two weights of a column make a block, which is one factor of linear.cpp, so its sixteen chains of sums
// are the same ones:
//
//     few rows    block -> register -> x each row -> sixteen lanes -> one output
//     more rows   blocks of some columns -> bfloat16 in the second-level cache -> tandem_linear
//
// Only for AVX-512 with bfloat16; elsewhere this file is empty.
#include <atomic>

#include "linear.h"
#include "scratch.h"

#if defined(TANDEM_AVX512) && defined(__AVX512BF16__)

extern "C" {

// Mirrored by ctypes in library.py.
struct TandemPackedLinear {
  TandemLinear product;    // in bfloat16, with the expanded weight
  const uint16_t* scales;  // [columns, inner / 32, 2 or 1]: scale and minimum, or scale alone, as float16
  const uint8_t* quants;   // [columns, inner / 32, 16 or 32]
  int32_t quant_bits;      // 4: unsigned, in nibble k of 16-bit word i is weight 8 k + i; 8: signed, in order
};

}  // extern "C"

namespace tandem {
namespace {

constexpr int kBlock = 32;            // weights
constexpr int kFewRows = 8;           // that meet a block while it is in a register
constexpr int kColumnsAtOnce = 2;     // whose chains hide each other's latency
constexpr int kFetchedAhead = 2048;   // bytes of quants
constexpr int kPanelColumns = 2 * kLanes;

struct FourBits {
  static constexpr int kScales = 2, kBytes = 16;
  static __m512i expand(const float* scales, const uint8_t* quants) {
    const __m512 levels = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512 values = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(scales[0]), levels), _mm512_set1_ps(scales[1]));
    // Twice, as the lookup sees five bits of an index, the fifth of which belongs to the next quant.
    const __m512i table = (__m512i)_mm512_cvtne2ps_pbh(values, values);
    const __m512i words = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(quants)));
    const __m512i nibbles = _mm512_set_epi64(0x000c000c000c000c, 0x000c000c000c000c, 0x0008000800080008, 0x0008000800080008,
                                             0x0004000400040004, 0x0004000400040004, 0, 0);
    return _mm512_permutexvar_epi16(_mm512_srlv_epi16(words, nibbles), table);
  }
};

struct EightBits {
  static constexpr int kScales = 1, kBytes = 32;
  static __m512i expand(const float* scales, const uint8_t* quants) {
    return (__m512i)_mm512_cvtne2ps_pbh(half(scales, quants + kLanes), half(scales, quants));
  }
  static __m512 half(const float* scales, const uint8_t* quants) {
    const __m512i whole = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(quants)));
    return _mm512_mul_ps(_mm512_set1_ps(*scales), _mm512_cvtepi32_ps(whole));
  }
};

// float16 to float32, which is exact.
inline void widen(const uint16_t* from, int64_t count, float* to) {
  for (int64_t at = 0; at < count; at += kLanes) {
    const int64_t left = count - at;
    const __mmask16 present = static_cast<__mmask16>(left >= kLanes ? 0xffff : (1u << left) - 1);
    _mm512_storeu_ps(to + at, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(present, from + at)));
  }
}

// Some columns from `first` on.
template <class Q>
struct Panel {
  const TandemPackedLinear& packed;
  const Product& product;
  const int64_t first, columns, blocks, row_scales;

  Panel(const TandemPackedLinear& p, int64_t first_column)
      : packed(p), product(p.product), first(first_column), columns(std::min<int64_t>(kPanelColumns, product.columns - first)),
        blocks(product.inner / kBlock), row_scales(ceil_div(blocks * Q::kScales, kLanes) * kLanes) {}

  // All rows, R at most.
  template <int R>
  void run(Scratch& scratch) const {
    if constexpr (R > 1)
      if (product.num_rows < R) return run<R - 1>(scratch);
    scratch.reset(kColumnsAtOnce * row_scales * sizeof(float));
    float* scales = scratch.take<float>(kColumnsAtOnce * row_scales);
    alignas(64) float sums[R][kPanelColumns] = {};
    int64_t column = 0;
    for (; column + kColumnsAtOnce <= columns; column += kColumnsAtOnce) add_up<R, kColumnsAtOnce>(column, scales, sums);
    for (; column < columns; ++column) add_up<R, 1>(column, scales, sums);
    for (int row = 0; row < R; ++row)
      for (int64_t at = 0; at < columns; at += kLanes)
        put_sums<BFloat16>(product, sums[row] + at, row, first + at, static_cast<int>(std::min<int64_t>(kLanes, columns - at)));
  }

  // The sums of R rows with C columns.
  template <int R, int C>
  void add_up(int64_t column, float* scales, float (*sums)[kPanelColumns]) const {
    const uint16_t* rows = static_cast<const uint16_t*>(product.rows);
    const uint8_t* quants = packed.quants + (first + column) * blocks * Q::kBytes;
    const int64_t count = blocks * Q::kScales;
    for (int c = 0; c < C; ++c) widen(packed.scales + (first + column + c) * count, count, scales + c * row_scales);
    Vector chains[C * R];
    TANDEM_UNROLL
    for (int i = 0; i < C * R; ++i) chains[i] = broadcast(0.0f);
    for (int64_t block = 0; block < blocks; ++block) {
      __builtin_prefetch(quants + block * C * Q::kBytes + kFetchedAhead);
      __m512i weights[C];
      TANDEM_UNROLL
      for (int c = 0; c < C; ++c)
        weights[c] = Q::expand(scales + c * row_scales + block * Q::kScales, quants + (c * blocks + block) * Q::kBytes);
      TANDEM_UNROLL
      for (int r = 0; r < R; ++r) {
        const __m512i row = BFloat16::load_factor(rows + r * product.inner + block * kBlock);
        TANDEM_UNROLL
        for (int c = 0; c < C; ++c) chains[c * R + r] = BFloat16::multiply_add(row, weights[c], chains[c * R + r]);
      }
    }
    TANDEM_UNROLL
    for (int c = 0; c < C; ++c)
      TANDEM_UNROLL
      for (int r = 0; r < R; ++r) sums[r][column + c] = reduce_add(chains[c * R + r]);
  }
};

struct PackedWork {
  const TandemPackedLinear* packed;
  int64_t total;
  std::atomic<int64_t> next;
};

void multiply_packed(void* data) {
  thread_local Scratch scratch;
  PackedWork& work = *static_cast<PackedWork*>(data);
  for (int64_t index = work.next++; index < work.total; index = work.next++) {
    const int64_t first = index * kPanelColumns;
    work.packed->quant_bits == 4 ? Panel<FourBits>(*work.packed, first).run<kFewRows>(scratch)
                                 : Panel<EightBits>(*work.packed, first).run<kFewRows>(scratch);
  }
}

}  // namespace
}  // namespace tandem

extern "C" {

// Multiplies few rows with the weight's packed form, others with its expanded form: the results are the same.
void tandem_packed_linear(const TandemPackedLinear* packed) {
  using namespace tandem;
  const Product& product = packed->product;
  if (product.num_rows == 0) return;
  if (product.num_rows > kFewRows) return tandem_linear(&product);
  PackedWork work{packed, ceil_div(product.columns, kPanelColumns), {0}};
  run_parallel(product.parallel, &multiply_packed, &work, product.num_threads, work.total);
}

}  // extern "C"

#endif
