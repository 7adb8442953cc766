// Products of tiles by AMX. Where it is not compiled in, the same by plain loops, so that its logic is tested anywhere.
#pragma once
#include "tiles.h"

namespace prunegym {
namespace VARIANT {

#if defined(PRUNEGYM_TILES) && LANES == 16

constexpr int TILE = 16;  // rows, and numbers of 32 bits in each

#if defined(__AMX_INT8__) || defined(__AMX_BF16__)

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// The compiler does not know what these instructions read, so all that is stored before must be in memory.
INLINE void written() { __asm__ volatile("" ::: "memory"); }

// sums += weights * pixels.
#ifdef __AMX_INT8__
#define MULTIPLY_TILES(sums, weights, pixels) _tile_dpbsud(sums, weights, pixels)
#else
#define MULTIPLY_TILES(sums, weights, pixels) _tile_dpbf16ps(sums, weights, pixels)
#endif

// Sums are tiles 0 to 3 (rows by positions), weights 4 and 5, pixels 6 and 7.
INLINE void begin_tiles(int rows) {
  TileConfig config;
  for (int tile = 0; tile < 8; tile++) config.bytes[tile] = 64, config.rows[tile] = TILE;
  for (int tile : {0, 1, 4}) config.rows[tile] = static_cast<uint8_t>(smaller(rows, TILE));
  written();
  _tile_loadconfig(&config);
}
INLINE void end_tiles() { _tile_release(); }

// 16 or 32 rows of weights times a panel's two tiles of positions.
template <bool TWO, bool RIGHT>
static void multiply(const int32_t* weights, int length, const int32_t* panel, int32_t* sums) {
  const long stride = static_cast<long>(length) * sizeof(int32_t);
  _tile_zero(0);
  if (RIGHT) _tile_zero(1);
  if (TWO) _tile_zero(2);
  if (TWO && RIGHT) _tile_zero(3);
  const int32_t* right = panel + static_cast<long>(length) * TILE;
  written();
  for (int k = 0; k < length; k += TILE) {
    _tile_loadd(4, weights + k, stride);
    _tile_loadd(6, panel + static_cast<long>(k) * TILE, 64);
    MULTIPLY_TILES(0, 4, 6);
    if (RIGHT) {
      _tile_loadd(7, right + static_cast<long>(k) * TILE, 64);
      MULTIPLY_TILES(1, 4, 7);
    }
    if (TWO) {
      _tile_loadd(5, weights + static_cast<long>(TILE) * length + k, stride);
      MULTIPLY_TILES(2, 5, 6);
    }
    if (TWO && RIGHT) MULTIPLY_TILES(3, 5, 7);
  }
  constexpr int row = BLOCK * sizeof(int32_t);
  _tile_stored(0, sums, row);
  if (RIGHT) _tile_stored(1, sums + TILE, row);
  if (TWO) _tile_stored(2, sums + TILE * BLOCK, row);
  if (TWO && RIGHT) _tile_stored(3, sums + TILE * BLOCK + TILE, row);
}

#else

INLINE void begin_tiles(int) {}
INLINE void end_tiles() {}

template <bool TWO, bool RIGHT>
static void multiply(const int32_t* weights, int length, const int32_t* panel, int32_t* sums) {
  for (int row = 0; row < (TWO ? 2 : 1) * TILE; row++)
    for (int half = 0; half < (RIGHT ? 2 : 1); half++) {
      Bits total{};
      for (int k = 0; k < length; k++)
        total = dot(total, load_bits(panel + (static_cast<long>(half) * length + k) * TILE), weights[static_cast<long>(row) * length + k]);
      store_bits(sums + row * BLOCK + half * TILE, total);
    }
}

#endif

INLINE long panel_floats(int length) { return 2L * length * TILE; }

// What is under each tap at a block's positions. Packs after the last tap's have weights of zero, so they stay as they are,
// unless they may be NaN.
static void make_panel(const Pixels& source, int length, int32_t* panel) {
  int32_t* right = panel + static_cast<long>(length) * TILE;
  long k = 0;
  for (int t = 0; t < source.tap_count; t++) {
    const int32_t* x = source.x + source.taps[t];
    for (int i = 0; i < source.packs; i++, k += TILE, x += source.channel) {
      store_bits(panel + k, load_bits(x));
      store_bits(right + k, load_bits(x + TILE));
    }
  }
  for (; MAY_BE_NAN && k < static_cast<long>(length) * TILE; k += TILE) {
    store_bits(panel + k, Bits{});
    store_bits(right + k, Bits{});
  }
}

// right: whether the second vector of positions is wanted.
static void sums_of_tiles(const int32_t* panel, const Gathered& g, int first, int rows, bool right, int32_t* sums) {
  const auto run = rows > TILE ? (right ? multiply<true, true> : multiply<true, false>)
                               : (right ? multiply<false, true> : multiply<false, false>);
  run(g.row(first), g.length, panel, sums);
}

#endif

}  // namespace VARIANT
}  // namespace prunegym
