// Attention over a paged, block-major KV cache on CPU. No dependencies; called through a C interface.
//
// A tile of rows that share a KV head and a sequence walks the block table span by span:
//
//     span of K, V packed -> scores -> online softmax -> accumulate with V
//
// (online softmax: Milakov and Gimelshein 2018; tiling: Dao et al. 2022). Scores and sums over V are products of elements
// with float32 sums, so weights are rounded to elements. Every row sees the same operations in the same order whatever
// shares its tile: a tile shares loads only. Masked tokens have weight zero, and tokens that no row of the tile may see
// are never read into a sum, so stale memory may hold NaN.
#include <atomic>

#include "attention_few.h"
#include "attention_many.h"

namespace tandem {

constexpr int kTileRows = 2 * kGroupRows;
constexpr int kFewRows = kLanes;  // fewer are walked by FewRows

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

template <class Walk>
void walk(const Call& call, const Tile& tile, Scratch& scratch) {
  Walk rows(call, tile, scratch);
  rows.start();
  const int end = rows.high(tile.num_rows - 1);
  for (int at = rows.low(0) / kSpan * kSpan; at < end; at += kSpan) {
    if (at + kSpan < end) rows.prefetch(at + kSpan, std::min(end, at + 2 * kSpan));
    rows.span(at);
  }
  rows.finish();
}

template <class D>
void walk_tile(const Call& call, const Tile& tile, Scratch& scratch) {
  tile.num_rows < kFewRows ? walk<FewRows<D>>(call, tile, scratch) : walk<ManyRows<D>>(call, tile, scratch);
}

inline void run_tile(const Call& call, int index, Scratch& scratch) {
  int sequence = 0;
  for (int count = tiles_of(call, 0); index >= count; count = tiles_of(call, ++sequence)) index -= count;
  const int rows = (call.query_starts[sequence + 1] - call.query_starts[sequence]) * (call.q_heads / call.kv_heads);
  const int first = index / call.kv_heads * kTileRows;
  const Tile tile{sequence, index % call.kv_heads, first, std::min(kTileRows, rows - first)};
  call.dtype == kFloat32 ? walk_tile<Float32>(call, tile, scratch) : walk_tile<BFloat16>(call, tile, scratch);
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
