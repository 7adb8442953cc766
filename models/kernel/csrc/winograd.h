// 3x3 convolutions of large maps by Winograd's F(2x2, 3x3) (Lavin and Gray 2016, section 4.1). Four output pixels of a
// channel (a square) need 16 multiplications per input channel instead of 36. Input and weights are transformed to 16
// planes each. These are multiplied plane by plane, for kept channels only, and the sums are transformed back.
//
// Lanes are squares, numbered row by row without gaps. One band of rows of squares is computed at a time, plane after
// plane for a block of output channels. So the data of a plane's tiles stay in the second-level cache.
#pragma once
#include <cstring>

#include "tile.h"

namespace prunegym {
namespace VARIANT {

constexpr int PLANES = 16;
constexpr int BAND_SQUARES = 128;         // at most, unless a single row has more squares
constexpr long BAND_FLOATS = 1 << 20;     // of the input's planes, with all channels
constexpr int BLOCK_ROWS = 48;            // output channels that are computed while a plane is in the cache
constexpr long CACHED_FLOATS = 256 << 10;  // of a map that stays in the second-level cache
constexpr int FEW_CHANNELS = 48, FEW_PIXELS = 196;  // with fewer, the transforms cost about as much as they save (measured)

static bool winograd_pays(const Conv& c) {
  const bool countable = static_cast<long>(c.out.height / 2) * c.out_channels <= INT32_MAX;  // Conv::shares
  return countable && c.height == 3 && c.width == 3 && c.stride == 1 && c.padding == 1 && c.padding_width == 1 &&
         c.dilation == 1 && c.groups == 1 && c.out.height % 2 == 0 && c.out.width % 2 == 0 &&
         c.in_channels >= FEW_CHANNELS && c.out_channels >= FEW_CHANNELS && c.out.pixels() >= FEW_PIXELS;
}

INLINE int band_begin(const Conv& c, int band) { return static_cast<int>(c.out.height / 2 * static_cast<long>(band) / c.bands); }

// Floats of a channel in a plane: an odd number of lines, so that channels spread over the cache.
INLINE long squares_size(const Conv& c) { return (round_up(c.vectors * LANES, LINE) / LINE | 1) * LINE; }
// Extra numbers after the last channel must not overwrite the next plane.
INLINE long plane_size(const Conv& c, int channels) { return channels * squares_size(c) + LANES; }

// As few vectors as possible, in as few bands as fit, because each band reads all weights.
static void plan_winograd(Conv& c) {
  const int rows = c.out.height / 2, width = c.out.width / 2;
  int best = INT32_MAX;
  for (int bands = 1; bands <= rows; bands++) {
    const int high = (rows + bands - 1) / bands, vectors = vectors_for(high * width);
    const int squares = vectors * LANES;
    const bool fits = squares <= BAND_SQUARES && static_cast<long>(PLANES) * c.in_channels * squares <= BAND_FLOATS;
    if (!fits && high > 1) continue;
    const int total = (bands - rows % bands) * vectors_for(rows / bands * width) + rows % bands * vectors;
    if (total >= best) continue;
    best = total;
    c.bands = bands, c.vectors = vectors;
  }
  // One band's planes of the input, and of the sums of a block of output channels.
  c.scratch_size = PLANES * (plane_size(c, c.in_channels) + plane_size(c, BLOCK_ROWS));
}

// One row of the 4x4 patches of LANES neighbouring squares: columns 0 to 3, whose first pixel is at `from`.
INLINE void patch_row(const float* from, Vec* columns) {
  UNROLL for (int half = 0; half < 2; half++) {
    const Vec low = load(from + 2 * half), high = load(from + 2 * half + LANES);
    columns[2 * half] = even_lanes(low, high), columns[2 * half + 1] = odd_lanes(low, high);
  }
}

// Rows of a channel are too short and too far apart for the processor to predict the next read.
INLINE void prefetch_patches(const float* from, long stride) {
  UNROLL for (int y = 0; y < 4; y++)
    UNROLL for (int at = 0; at < 2 * LANES; at += LINE) __builtin_prefetch(from + y * stride + at, 0, 3);
}

// B^T d B of the patches d, into one square of each plane.
INLINE void transform_patch(const Vec (&d)[4][4], float* to, long plane) {
  Vec t[4][4];
  UNROLL for (int column = 0; column < 4; column++) {
    t[0][column] = d[0][column] - d[2][column], t[1][column] = d[1][column] + d[2][column];
    t[2][column] = d[2][column] - d[1][column], t[3][column] = d[1][column] - d[3][column];
  }
  UNROLL for (int row = 0; row < 4; row++, to += 4 * plane) {
    store(to, t[row][0] - t[row][2]);
    store(to + plane, t[row][1] + t[row][2]);
    store(to + 2 * plane, t[row][2] - t[row][1]);
    store(to + 3 * plane, t[row][1] - t[row][3]);
  }
}

// The planes (16, kept channels, squares) of a band. Squares are written in whole vectors; the next row overwrites extra
// numbers.
static void transform_input(const Conv& c, const ConvCall& call, int first_row, int last_row, float* planes) {
  const long squares = squares_size(c), plane = plane_size(c, call.in_kept.count), stride = c.in.stride;
  const int width = c.out.width / 2;
  const bool far = static_cast<long>(call.in_kept.count) * c.in.channel > CACHED_FLOATS;
  for (int i = 0; i < call.in_kept.count; i++, planes += squares) {
    const float* corner = call.input + static_cast<long>(i) * c.in.channel + c.in.first() - stride - 1;
    for (int row = first_row; row < last_row; row++) {
      for (int x = 0; x < width; x += LANES) {
        Vec d[4][4];
        if (far && i + 1 < call.in_kept.count) prefetch_patches(corner + c.in.channel + 2L * row * stride + 2 * x, stride);
        UNROLL for (int y = 0; y < 4; y++) patch_row(corner + (2L * row + y) * stride + 2 * x, d[y]);
        transform_patch(d, planes + static_cast<long>(row - first_row) * width + x, plane);
      }
    }
  }
}

// LANES * 2 pixels of a row of the output, of which `left` are inside the picture. No others are written: the next row
// may belong to another thread.
INLINE void store_pixels(float* to, int left, Vec low, Vec high) {
  if (left >= 2 * LANES) return store(to, low), store(to + LANES, high);
  float pixels[2 * LANES];
  store(pixels, low), store(pixels + LANES, high);
  std::memcpy(to, pixels, left * sizeof(float));
}

// The pixels of one output channel and one row of squares, A^T m A, with bias, residual and ReLU.
INLINE void transform_back(const Conv& c, const float* sums, long plane, Vec bias, const float* residual, float* out) {
  const int width = c.out.width;
  const Bounds bounds = bounds_of(c.activation);
  for (int x = 0; x < width / 2; x += LANES) {
    Vec s[2][4];
    UNROLL for (int column = 0; column < 4; column++) {
      const float* m = sums + column * plane + x;
      const Vec second = load(m + 4 * plane), third = load(m + 8 * plane);
      s[0][column] = load(m) + (second + third), s[1][column] = (second - third) - load(m + 12 * plane);
    }
    UNROLL for (int y = 0; y < 2; y++) {
      const Vec left = (bias + s[y][0]) + (s[y][1] + s[y][2]), right = bias + (s[y][1] - s[y][2]) - s[y][3];
      Vec low = interleave_low(left, right), high = interleave_high(left, right);
      if (residual) {
        // May read from a row that another thread is writing; those numbers are not stored.
        const float* add = residual + y * c.residual.stride + 2 * x;
        low += load(add), high += load(add + LANES);
      }
      store_pixels(out + y * c.out.stride + 2 * x, width - 2 * x, clamp(low, bounds), clamp(high, bounds));
    }
  }
  if (is_long(c.activation))
    for (int y = 0; y < 2; y++) activate(c.activation, out + y * c.out.stride, width);
}

// A plane's sums of output channels first..last - 1.
static void multiply_plane(const Conv& c, const ConvCall& call, int first, int last, int p, const Source& source,
                           int vectors, Tiling tiling, float* sums) {
  for_parts(first, last, tiling.row_blocks, [&](int, int r0, int r1) {
    Rows rows{};
    rows.bounds = bounds_of(NO_ACTIVATION);
    for (int r = r0; r < r1; r++) {
      rows.weight[r - r0] = c.weight + (static_cast<long>(p) * c.out_channels + call.out_kept.index[r]) * c.in_channels;
      rows.out[r - r0] = sums + (r - first) * source.channel;
    }
    for_parts(0, vectors, tiling.vector_blocks, [&](int, int v0, int v1) {
      tiles1.at[r1 - r0][v1 - v0](source, source.data + v0 * LANES, rows, v0 * LANES, nullptr);
    });
  });
}

// Output channels first..last - 1, at most BLOCK_ROWS, of a band whose planes are ready.
static void winograd_block(const Conv& c, const ConvCall& call, int first, int last, int first_row, int last_row,
                           const float* planes, float* sums) {
  static const long tap = 0;
  const int width = c.out.width / 2, vectors = vectors_for((last_row - first_row) * width);
  const long squares = squares_size(c), plane = plane_size(c, call.in_kept.count), sums_plane = plane_size(c, last - first);
  const Tiling tiling = choose_tiling(last - first, vectors, true);
  for (int p = 0; p < PLANES; p++) {
    const Source source{planes + p * plane, squares, &tap, 1, call.in_kept};
    multiply_plane(c, call, first, last, p, source, vectors, tiling, sums + p * sums_plane);
  }
  for (long channel = first; channel < last; channel++, sums += squares) {
    const Vec bias = broadcast(call.bias[call.out_kept.index[channel]]);
    float* out = call.output + channel * c.out.channel + c.out.first();
    const float* residual = call.residual ? call.residual + channel * c.residual.channel + c.residual.first() : nullptr;
    for (long row = first_row; row < last_row; row++)
      transform_back(c, sums + (row - first_row) * width, sums_plane, bias,
                     residual ? residual + 2 * row * c.residual.stride : nullptr, out + 2 * row * c.out.stride);
  }
}

// Shares are pairs of a band and an output channel, band by band.
static void conv_winograd(const Conv& c, const ConvCall& call) {
  const int count = call.out_kept.count;
  float* planes = call.scratch;
  float* sums = planes + PLANES * plane_size(c, c.in_channels);
  for (int share = call.first; share < call.last;) {
    const int band = share / count, first = share % count;
    const int last = smaller(first + (call.last - share), count);
    const int first_row = band_begin(c, band), last_row = band_begin(c, band + 1);
    transform_input(c, call, first_row, last_row, planes);
    for_parts(first, last, (last - first + BLOCK_ROWS - 1) / BLOCK_ROWS, [&](int, int r0, int r1) {
      winograd_block(c, call, r0, r1, first_row, last_row, planes, sums);
    });
    share += last - first;
  }
}

}  // namespace VARIANT
}  // namespace prunegym
