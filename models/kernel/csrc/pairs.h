// The rows of a convolution's tiles, and 3x3 convolutions of maps of 2x2 pixels, whose lanes hold pairs of pixels.
#pragma once
#include "tile.h"

namespace prunegym {
namespace VARIANT {

static Rows make_rows(const Conv& c, const ConvCall& call, int first, int last, int next_last) {
  Rows rows;
  const long size = static_cast<long>(c.group_inputs()) * c.tap_count();
  rows.prefetch = call.prefetch && next_last > last;
  rows.prefetch_pixels = false;
  rows.bounds = bounds_of(c.activation);
  rows.residual[0] = nullptr;
  for (int r = first; r < last; r++) {
    const int channel = call.out_kept.index[r];
    rows.weight[r - first] = c.weight + (channel * size - call.skipped);
    if (rows.prefetch) {
      const int next = smaller(r + last - first, next_last - 1);
      rows.next[r - first] = c.weight + (call.out_kept.index[next] * size - call.skipped);
    }
    rows.bias[r - first] = call.bias[channel];
    rows.out[r - first] = call.output + static_cast<long>(r) * c.out.channel;
    if (call.residual) rows.residual[r - first] = call.residual + static_cast<long>(r) * c.residual.channel;
  }
  return rows;
}

#if LANES >= 8
// 2x2 maps: a 3x3 window around each output pixel covers all four input pixels. So lanes are pairs of an output and an
// input pixel, and the weights of the pairs are one permutation of the nine. Eight lanes have two output pixels: the
// weights of the upper two are those of the lower two, three places later.
#if LANES == 8
constexpr int PAIR_PARTS = 2;
INLINE Vec pair_weights(const float* w, int part) {
  const Vec v = load(w + 3 * (1 - part));
  return SHUFFLE(v, v, 1, 2, 4, 5, 0, 1, 3, 4);
}
#else
constexpr int PAIR_PARTS = 1;
INLINE Vec pair_weights(const float* w, int) {
  const Vec v = load(w);
  return SHUFFLE(v, v, 4, 5, 7, 8, 3, 4, 6, 7, 1, 2, 4, 5, 0, 1, 3, 4);
}
#endif
constexpr int PAIR_ROWS = LANES == 8 ? 6 : 8;

template <int R>
static void pair_tile(const Conv& c, const Source& source, const Rows& rows) {
  Vec sums[R][PAIR_PARTS] = {};
  const float* weight[R];
  UNROLL for (int r = 0; r < R; r++) weight[r] = rows.weight[r];
  const float* x = source.data;
  for (int i = 0; i < source.kept.count; i++, x += LANES) {
    const long at = source.kept.index[i] * 9L;
    const Vec pixels = load(x);
    UNROLL for (int r = 0; r < R; r++) {
      if (rows.prefetch) prefetch_row(rows.next[r] + at);
      UNROLL for (int part = 0; part < PAIR_PARTS; part++)
        sums[r][part] += pair_weights(weight[r] + at, part) * pixels;
    }
  }
  for (int r = 0; r < R; r++) {
    float lanes[16], pixels[LINE] = {};
    for (int part = 0; part < PAIR_PARTS; part++) store(lanes + part * LANES, sums[r][part]);
    for (int pixel = 0; pixel < 4; pixel++) {
      const float* four = lanes + 4 * pixel;
      float v = rows.bias[r] + (four[0] + four[1]) + (four[2] + four[3]);
      if (rows.residual[0]) v += rows.residual[r][c.residual.first() + pixel / 2 * c.residual.stride + pixel % 2];
      pixels[pixel] = v;
    }
    activate(c.activation, pixels, 4);
    for (int pixel = 0; pixel < 4; pixel++)
      rows.out[r][c.out.first() + pixel / 2 * c.out.stride + pixel % 2] = pixels[pixel];
  }
}

static void conv_two_by_two(const Conv& c, const ConvCall& call, const Source& source) {
  static constexpr void (*pair_tiles[9])(const Conv&, const Source&, const Rows&) = {
      nullptr,      pair_tile<1>, pair_tile<2>, pair_tile<3>, pair_tile<4>,
      pair_tile<5>, pair_tile<6>, pair_tile<7>, pair_tile<8>};
  const int blocks = (call.last - call.first + PAIR_ROWS - 1) / PAIR_ROWS;
  for_parts(call.first, call.last, blocks, [&](int, int r0, int r1) {
    pair_tiles[r1 - r0](c, source, make_rows(c, call, r0, r1, call.last));
  });
}
#else
static void conv_two_by_two(const Conv&, const ConvCall&, const Source&) {}
#endif

}  // namespace VARIANT
}  // namespace prunegym
