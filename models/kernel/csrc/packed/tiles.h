// The inner loops: sums of products, for up to BLOCK_ROWS output channels at two vectors of positions.
//
// With AMX, 16 rows of weights times a panel of 16 positions, 16 packs of inputs at a time. A panel holds what is under
// each tap, [tap][input][position], because a tile is loaded from rows at one distance. Elsewhere pixels are read where
// they lie, as in tile.h.
#pragma once
#include "weights.h"

namespace prunegym {
namespace VARIANT {

constexpr int BLOCK = 2 * LANES;    // positions that are computed together
constexpr int BLOCK_ROWS = 32;      // rows that are
constexpr int SUMS_FLOATS = BLOCK_ROWS * BLOCK;

// Where the positions of a block are read: pack (tap, input) at x + input * channel + taps[tap].
struct Pixels {
  const int32_t* x;
  long channel;
  const long* taps;
  int tap_count, packs;
};

#if !defined(PRUNEGYM_TILES)

template <int R>
static void dots(const Pixels& source, const Gathered& g, int first, int32_t* sums) {
  Bits total[R][2] = {};
  const int32_t* row[R];
  UNROLL for (int r = 0; r < R; r++) row[r] = g.row(first + r);
  long k = 0;
  for (int t = 0; t < source.tap_count; t++) {
    const int32_t* x = source.x + source.taps[t];
    for (int i = 0; i < source.packs; i++, k++, x += source.channel) {
      const Bits left = load_bits(x), right = load_bits(x + LANES);
      UNROLL for (int r = 0; r < R; r++) {
        total[r][0] = dot(total[r][0], left, row[r][k]);
        total[r][1] = dot(total[r][1], right, row[r][k]);
      }
    }
  }
  UNROLL for (int r = 0; r < R; r++) {
    store_bits(sums + r * BLOCK, total[r][0]);
    store_bits(sums + r * BLOCK + LANES, total[r][1]);
  }
}

constexpr int DOT_ROWS = LANES == 16 ? 8 : 4;

// rows: a multiple of four. first: the first of them in g.
static void sums_of_dots(const Pixels& source, const Gathered& g, int first, int rows, int32_t* sums) {
  int r = 0;
  for (; r + DOT_ROWS <= rows; r += DOT_ROWS) dots<DOT_ROWS>(source, g, first + r, sums + r * BLOCK);
  if (r < rows) dots<4>(source, g, first + r, sums + r * BLOCK);
}

#endif

}  // namespace VARIANT
}  // namespace prunegym
