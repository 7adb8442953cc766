// The inner loops of a convolution. A tile of R output channels by P vectors of pixels stays in registers while all kept
// input channels are added. Lanes are pixels. A weight is read from its place in (out, in, kernel, kernel) and broadcast.
// So the kept channels only decide where x and weights are read, and nothing is copied or reordered.
#pragma once
#include "activation.h"

namespace prunegym {
namespace VARIANT {

// Registers: R * P sums, the smaller of R and P operands, and one more. x86 has 16 registers of 128 and 256 bits, 32 of
// 512. Each tile takes time to compile, especially with 512 bits, so there are only shapes that are used.
constexpr int SUMS = LANES == 16 ? 24 : 12;
constexpr int MAX_ROWS = 8;
constexpr int MAX_VECTORS = LANES == 16 ? 4 : 6;

// The input of a convolution, as tiles read it.
struct Source {
  const float* data;
  long channel;      // floats from a kept channel to the next
  const long* taps;  // from a position to the input under each weight of the kernel
  int tap_count;
  Kept kept;
};

// The rows (output channels) of a tile.
struct Rows {
  const float* weight[MAX_ROWS];    // (in, kernel, kernel) of this output channel
  const float* next[MAX_ROWS];      // of a row to be computed later, to be prefetched
  const float* residual[MAX_ROWS];  // added before the ReLU; null: none, for all rows
  float* out[MAX_ROWS];
  float bias[MAX_ROWS];
  bool prefetch;
  Bounds bounds;
  bool prefetch_pixels;  // whether the tile to the right is next and its pixels are not in the first-level cache
};

typedef void (*Tile)(const Source&, const float* x, const Rows&, long shift, const int32_t* valid);

INLINE void prefetch_row(const float* weight) {
  __builtin_prefetch(weight, 0, 2);
  __builtin_prefetch(weight + 8, 0, 2);  // nine weights may lie across two lines
}

// Prefetches the pixels of the next tile. Too many rows are read in parallel for the processor to predict this.
template <int P>
INLINE void prefetch_pixels(const Source& source, const float* x) {
  const int side = source.tap_count == 9 ? 3 : 1;
  UNROLL for (int row = 0; row < side; row++)
    UNROLL for (int at = 0; at < P * LANES; at += LINE)
      __builtin_prefetch(x + source.taps[row * side + side / 2] + P * LANES + LINE / 2 + at, 0, 3);
}

// x: input at the tile's first position. shift: that position, counted from rows.out. TAPS: 0 if known at run time only.
template <int TAPS, int R, int P>
static void tile(const Source& source, const float* x, const Rows& rows, long shift, const int32_t* valid) {
  const int taps = TAPS ? TAPS : source.tap_count;
  Vec sums[R][P];
  const float* weight[R];
  UNROLL for (int r = 0; r < R; r++) {
    weight[r] = rows.weight[r];
    UNROLL for (int p = 0; p < P; p++) sums[r][p] = broadcast(rows.bias[r]);
  }
  for (int i = 0; i < source.kept.count; i++, x += source.channel) {
    const long at = static_cast<long>(source.kept.index[i]) * taps;
    if (rows.prefetch) {
      UNROLL for (int r = 0; r < R; r++) prefetch_row(rows.next[r] + at);
    }
    if (TAPS && rows.prefetch_pixels) prefetch_pixels<P>(source, x);
    auto tap = [&](int t) __attribute__((always_inline)) {
      const float* xt = x + source.taps[t];
      if constexpr (P <= R) {  // keep the P vectors of pixels in registers, broadcast one weight at a time
        Vec pixels[P];
        UNROLL for (int p = 0; p < P; p++) pixels[p] = load(xt + p * LANES);
        UNROLL for (int r = 0; r < R; r++) {
          const Vec w = broadcast(weight[r][at + t]);
          UNROLL for (int p = 0; p < P; p++) sums[r][p] += w * pixels[p];
        }
      } else {  // keep the R weights in registers, load one vector of pixels at a time
        Vec w[R];
        UNROLL for (int r = 0; r < R; r++) w[r] = broadcast(weight[r][at + t]);
        UNROLL for (int p = 0; p < P; p++) {
          const Vec pixels = load(xt + p * LANES);
          UNROLL for (int r = 0; r < R; r++) sums[r][p] += w[r] * pixels;
        }
      }
    };
    if constexpr (TAPS > 0) {
      UNROLL for (int t = 0; t < TAPS; t++) tap(t);
    } else {
      for (int t = 0; t < taps; t++) tap(t);
    }
  }
  UNROLL for (int r = 0; r < R; r++) {
    UNROLL for (int p = 0; p < P; p++) {
      Vec v = sums[r][p];
      if (rows.residual[0]) v += load(rows.residual[r] + shift + p * LANES);
      v = clamp(v, rows.bounds);
      if (valid) v = keep(v, load_bits(valid + shift + p * LANES));
      store(rows.out[r] + shift + p * LANES, v);
    }
  }
}

// tile<TAPS, R, P> for all R and P that fit in registers, by R and P.
struct TileTable {
  Tile at[MAX_ROWS + 1][MAX_VECTORS + 1];
};

template <int TAPS, int R, int P>
constexpr void fill_table(TileTable& table) {
  if constexpr (R <= MAX_ROWS && P <= MAX_VECTORS) {
    if constexpr (R * P <= SUMS) table.at[R][P] = tile<TAPS, R, P>;
    fill_table<TAPS, (P < MAX_VECTORS ? R : R + 1), (P < MAX_VECTORS ? P + 1 : 1)>(table);
  }
}

template <int TAPS>
constexpr TileTable make_table() {
  TileTable table{};
  fill_table<TAPS, 1, 1>(table);
  return table;
}

static const TileTable tiles1 = make_table<1>();

// How to cut rows x vectors into tiles: as evenly as possible, with the shape that needs the fewest cycles.
struct Tiling {
  int row_blocks, vector_blocks;
};

// Half cycles for one tap of a tile. A cycle has two multiply-adds and two loads, and the same sum can be added to every
// four cycles. More vectors than rows are slower than that (measured: 5.5 cycles for 2 x 4, 4.4 for 4 x 2).
INLINE long tile_cost(int rows, int vectors) {
  const int work = rows * vectors, loads = rows + vectors;
  const int busy = larger(work, loads);
  return 1 + larger(busy, 8) + larger(vectors - rows, 0);
}

// The same for a row of tiles over all vectors, cut into nearly equal parts.
INLINE long strip_cost(int rows, int vectors, int vector_blocks) {
  const int narrow = vectors / vector_blocks, wide = vectors % vector_blocks;
  return wide * tile_cost(rows, narrow + 1) + (vector_blocks - wide) * tile_cost(rows, narrow);
}

// With the same cost, prefer more rows, because x is then read fewer times, or wider tiles.
static Tiling choose_tiling(int rows, int vectors, bool wide = false) {
  Tiling best{1, 1};
  long best_cost = INT64_MAX;
  for (int r = 1; r <= MAX_ROWS; r++) {
    const int p = smaller(SUMS / r, MAX_VECTORS);
    const int row_blocks = (rows + r - 1) / r, vector_blocks = (vectors + p - 1) / p;
    const int low = rows / row_blocks, high = rows % row_blocks;
    const long cost = (high ? high * strip_cost(low + 1, vectors, vector_blocks) : 0) +
                      (row_blocks - high) * strip_cost(low, vectors, vector_blocks);
    if (cost < best_cost || (cost == best_cost && !wide)) {
      best_cost = cost;
      best = Tiling{row_blocks, vector_blocks};
    }
  }
  return best;
}

// Calls f(part, first, last) for `parts` nearly equal parts of the range [first, last).
template <typename F>
INLINE void for_parts(int first, int last, int parts, F f) {
  const int size = (last - first) / parts, rest = (last - first) % parts;
  // Part k begins at first + (last - first) * k / parts. This avoids the product, which can exceed 32 bits.
  for (int k = 0, begin = first, extra = 0; k < parts; k++) {
    int end = begin + size;
    extra += rest;
    if (extra >= parts) extra -= parts, end++;
    f(k, begin, end);
    begin = end;
  }
}

}  // namespace VARIANT
}  // namespace prunegym
