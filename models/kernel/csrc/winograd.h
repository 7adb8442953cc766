// 3x3 convolutions of large maps by Winograd's F(2x2, 3x3) (Lavin and Gray 2016, section 4.1): four output pixels of a
// channel, a square, take 16 multiplications for each input channel instead of 36. Input and weights are transformed to
// 16 planes each, which are multiplied plane by plane, over kept channels alone, and the sums are transformed back.
//
// Squares are in the vector lanes, numbered row by row without gaps. A band of rows of squares passes at a time, so that
// its planes stay in the second-level cache.
#pragma once
#include <cstring>

#include "tile.h"

namespace prunegym {
namespace VARIANT {

constexpr int PLANES = 16;
constexpr int BAND_VECTORS = 8;                // of squares, at most, if a row of squares is not more than that
constexpr long BAND_FLOATS = 256 << 10;        // of the input's planes, with all channels
constexpr int FEW_CHANNELS = 48, FEW_PIXELS = 196;  // below, the transforms cost about what they save (measured)

static bool winograd_pays(const Conv& c) {
  return c.kernel == 3 && c.stride == 1 && c.padding == 1 && c.out.height % 2 == 0 && c.out.width % 2 == 0 &&
         c.in_channels >= FEW_CHANNELS && c.out_channels >= FEW_CHANNELS && c.out.pixels() >= FEW_PIXELS;
}

INLINE int squares_to_vectors(int squares) { return (squares + LANES - 1) / LANES; }
INLINE int band_begin(const Conv& c, int band) { return c.out.height / 2 * band / c.bands; }

// As few vectors as possible in bands that fit, two bands at least, for as many threads.
static void plan_winograd(Conv& c) {
  const int rows = c.out.height / 2, width = c.out.width / 2;
  int best = INT32_MAX;
  for (int bands = 2; bands <= rows; bands++) {
    const int high = (rows + bands - 1) / bands, vectors = squares_to_vectors(high * width);
    const bool fits = vectors <= BAND_VECTORS && static_cast<long>(PLANES) * c.in_channels * vectors * LANES <= BAND_FLOATS;
    if (!fits && high > 1) continue;
    const int total = (bands - rows % bands) * squares_to_vectors(rows / bands * width) + rows % bands * vectors;
    if (total >= best) continue;
    best = total;
    c.bands = bands, c.vectors = vectors;
  }
}

INLINE long squares_size(const Conv& c) { return static_cast<long>(c.vectors) * LANES; }
// What is written too much after the last channel must not fall on the next plane.
INLINE long plane_size(const Conv& c, int channels) { return channels * squares_size(c) + LANES; }

// One band's planes of the input, of the sums of a block of rows, and a line of pixels.
static long winograd_scratch(const Conv& c) {
  return PLANES * (plane_size(c, c.in_channels) + plane_size(c, MAX_ROWS)) + c.out.width + 2 * LANES;
}

// A 4x4 patch of the input, B^T d B. `from`: its upper left pixel for the first of LANES neighbouring squares.
INLINE void transform_patch(const float* from, long stride, float* to, long plane) {
  Vec t[4][4];
  UNROLL for (int column = 0; column < 4; column++) {
    Vec d[4];
    UNROLL for (int row = 0; row < 4; row++) {
      const float* pixels = from + row * stride + column / 2 * 2;
      const Vec low = load(pixels), high = load(pixels + LANES);
      d[row] = column % 2 ? odd_lanes(low, high) : even_lanes(low, high);
    }
    t[0][column] = d[0] - d[2], t[1][column] = d[1] + d[2], t[2][column] = d[2] - d[1], t[3][column] = d[1] - d[3];
  }
  UNROLL for (int row = 0; row < 4; row++, to += 4 * plane) {
    store(to, t[row][0] - t[row][2]);
    store(to + plane, t[row][1] + t[row][2]);
    store(to + 2 * plane, t[row][2] - t[row][1]);
    store(to + 3 * plane, t[row][1] - t[row][3]);
  }
}

// The planes (16, kept channels, squares) of a band. A row of squares is written in whole vectors; what is too much is
// overwritten by the next row.
static void transform_input(const Conv& c, const ConvCall& call, int first_row, int last_row, float* planes) {
  const long squares = squares_size(c), plane = plane_size(c, call.in_kept.count);
  const int width = c.out.width / 2;
  for (int i = 0; i < call.in_kept.count; i++) {
    const float* corner = call.input + static_cast<long>(i) * c.in.channel + c.in.first() - c.in.stride - 1;
    float* to = planes + i * squares;
    for (int row = first_row; row < last_row; row++, to += width)
      for (int x = 0; x < width; x += LANES)
        transform_patch(corner + 2L * row * c.in.stride + 2 * x, c.in.stride, to + x, plane);
  }
}

// The pixels of one output channel and one row of squares, A^T m A, with bias, residual and ReLU.
static void transform_back(const Conv& c, const float* sums, long plane, float bias, const float* residual, float* out,
                           float* line) {
  const int width = c.out.width;
  for (int y = 0; y < 2; y++) {
    for (int x = 0; x < width / 2; x += LANES) {
      Vec s[4];
      UNROLL for (int column = 0; column < 4; column++) {
        const float* m = sums + column * plane + x;
        const Vec second = load(m + 4 * plane), third = load(m + 8 * plane);
        s[column] = y == 0 ? load(m) + second + third : second - third - load(m + 12 * plane);
      }
      const Vec left = broadcast(bias) + s[0] + s[1] + s[2], right = broadcast(bias) + s[1] - s[2] - s[3];
      Vec low = interleave_low(left, right), high = interleave_high(left, right);
      if (residual) low += load(residual + 2 * x), high += load(residual + 2 * x + LANES);
      store(line + 2 * x, relu_if(c.relu, low));
      store(line + 2 * x + LANES, relu_if(c.relu, high));
    }
    std::memcpy(out, line, width * sizeof(float));  // not a pixel more: the next row may be another thread's
    out += c.out.stride;
    if (residual) residual += c.residual.stride;
  }
}

// Output channels first..last - 1 of a band, whose planes are at hand.
static void winograd_block(const Conv& c, const ConvCall& call, int first, int last, int first_row, int last_row,
                           const float* planes, float* sums, float* line) {
  static const int tap = 0;
  const int width = c.out.width / 2, vectors = squares_to_vectors((last_row - first_row) * width), count = last - first;
  const long squares = squares_size(c), plane = plane_size(c, call.in_kept.count), sums_plane = plane_size(c, count);
  const int blocks = (vectors + MAX_VECTORS - 1) / MAX_VECTORS;
  Rows rows{};
  for (int p = 0; p < PLANES; p++) {
    const Source source{planes + p * plane, squares, &tap, 1, call.in_kept};
    for (int r = 0; r < count; r++) {
      rows.weight[r] = c.weight + (static_cast<long>(call.out_kept.index[first + r]) * PLANES + p) * c.in_channels;
      rows.out[r] = sums + p * sums_plane + r * squares;
    }
    for (int k = 0; k < blocks; k++) {
      const int begin = vectors * k / blocks, end = vectors * (k + 1) / blocks;
      tiles1.at[count][end - begin](source, source.data + begin * LANES, rows, begin * LANES, nullptr);
    }
  }
  for (int r = 0; r < count; r++) {
    const float bias = c.bias[call.out_kept.index[first + r]];
    float* out = call.output + static_cast<long>(first + r) * c.out.channel + c.out.first();
    const float* residual =
        call.residual ? call.residual + static_cast<long>(first + r) * c.residual.channel + c.residual.first() : nullptr;
    for (int row = first_row; row < last_row; row++)
      transform_back(c, sums + r * squares + (row - first_row) * width, sums_plane, bias,
                     residual ? residual + 2L * row * c.residual.stride : nullptr, out + 2L * row * c.out.stride, line);
  }
}

static void conv_winograd(const Conv& c, const ConvCall& call) {
  float* planes = call.scratch;
  float* sums = planes + PLANES * plane_size(c, c.in_channels);
  float* line = sums + PLANES * plane_size(c, MAX_ROWS);
  const int most = SUMS / (c.vectors < MAX_VECTORS ? c.vectors : MAX_VECTORS);
  const int rows = most < MAX_ROWS ? most : MAX_ROWS, blocks = (call.out_kept.count + rows - 1) / rows;
  for (int band = call.first; band < call.last; band++) {
    const int first_row = band_begin(c, band), last_row = band_begin(c, band + 1);
    transform_input(c, call, first_row, last_row, planes);
    for (int k = 0; k < blocks; k++)
      winograd_block(c, call, call.out_kept.count * k / blocks, call.out_kept.count * (k + 1) / blocks, first_row,
                     last_row, planes, sums, line);
  }
}

}  // namespace VARIANT
}  // namespace prunegym
