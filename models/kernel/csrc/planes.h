// The input of a convolution as its inner loops read it: straight from the map, or from shifted copies. Nothing here
// computes with the numbers, so they may be floats or quads of bytes (packed/quads.h).
#pragma once
#include "simd.h"

namespace prunegym {
namespace VARIANT {

// Whether positions of the output's grid and of the input lie at fixed distances.
INLINE bool is_flat(const Conv& c, bool has_residual) {
  return c.stride == 1 && c.height <= 3 && c.width <= 3 && c.dilation == 1 && c.padding <= (c.height - 1) / 2 &&
         c.padding_width <= (c.width - 1) / 2 && c.in.stride == c.out.stride &&
         (!has_residual || c.residual.stride == c.out.stride);
}

static void plan_in_place(Conv& c) {
  c.vectors = vectors_for(c.out.height * c.out.stride);
  c.input_channel = c.in.channel;
  for (int t = 0; t < c.tap_count(); t++)
    c.taps[t] = (t / c.width - c.padding) * c.in.stride + t % c.width - c.padding_width;
}

// Copy (phase, dx) holds, row by row, the input under column dx of the kernel, for the input rows
// phase - padding, phase - padding + stride, ...; so the weight (dy, dx) reads the copy (dy % stride, dx),
// dy / stride rows further down (dy: counted in rows of the input, so with the dilation).
//
// stored: channels of the input in memory. extra: numbers that may be read after the last position.
static void plan_copies(Conv& c, int stored, int extra = LANES) {
  const int width = c.out.width;
  c.vectors = vectors_for(c.out.pixels());
  c.plane = round_up((c.out.height + c.reach() / c.stride) * width + extra, LINE);
  c.input_channel = (static_cast<long>(c.phases()) * c.width * c.plane / LINE | 1) * LINE;
  c.planes_size = stored * c.input_channel;
  for (int t = 0; t < c.tap_count(); t++) {
    const int dy = t / c.width * c.dilation, dx = t % c.width;
    c.taps[t] = (dy % c.stride * c.width + dx) * static_cast<long>(c.plane) + dy / c.stride * width;
  }
}

// One row of a copy, where the frame of the map has all zeros that it needs. Writes up to LANES - 1 extra numbers, which
// the next row overwrites.
INLINE void copy_row(const float* from, int step, int width, float* to) {
  for (int x = 0; x < width; x += LANES) {
    if (step == 1) store(to + x, load(from + x));
    else store(to + x, even_lanes(load(from + 2 * x), load(from + 2 * x + LANES)));
  }
}

// The same for wide padding and any stride, with the frame's number where there is no pixel. from: the row's pixel 0, or null above
// and below the picture. first: the column under to[0]. fill: what the frame is made of.
static void copy_row_padded(const float* from, int first, int step, int in_width, int width, float fill, float* to) {
  int begin = first < 0 ? (step - 1 - first) / step : 0, end = first < in_width ? (in_width - 1 - first) / step + 1 : 0;
  if (end > width) end = width;
  if (!from || begin >= end) begin = end = width;
  else if (step <= 2) copy_row(from + first + begin * step, step, end - begin, to + begin);
  else
    for (int x = begin; x < end; x++) to[x] = from[first + x * step];
  for (int x = 0; x < begin; x++) to[x] = fill;
  for (int x = end; x < width; x++) to[x] = fill;
}

static void copy_channel(const Conv& c, const float* map, float* to) {
  const bool framed = c.padding <= 1 && c.padding_width <= 1 && c.stride <= 2;
  for (int phase = 0; phase < c.phases(); phase++) {
    for (int dx = 0; dx < c.width; dx++, to += c.plane) {
      const int rows = c.out.height + (c.reach() - phase) / c.stride, first = dx * c.dilation - c.padding_width;
      for (int row = 0; row < rows; row++) {
        const int y = row * c.stride + phase - c.padding;
        const float* from = map + c.in.first() + static_cast<long>(y) * c.in.stride;
        float* line = to + row * c.out.width;
        if (framed) copy_row(from + first, c.stride, c.out.width, line);
        else copy_row_padded(y >= 0 && y < c.in.height ? from : nullptr, first, c.stride, c.in.width, c.out.width, c.fill, line);
      }
    }
  }
}

// The same with one copy for each phase of rows and of columns, which all columns of the kernel share. Rows of the grid
// are `pitch` long, a little longer than the output's. Needs fewer copies where the stride is 2 or more.
static int phases_pitch(const Conv& c) { return c.out.width + (c.width - 1) * c.dilation / c.stride; }
static int phases_across(const Conv& c) { return smaller(c.stride, (c.width - 1) * c.dilation + 1); }

[[maybe_unused]] static void plan_phases(Conv& c, int stored, int extra) {
  const int pitch = phases_pitch(c), across = phases_across(c);
  c.vectors = vectors_for((c.out.height - 1) * pitch + c.out.width);
  c.plane = round_up((c.out.height + c.reach() / c.stride) * pitch + extra, LINE);
  c.input_channel = (static_cast<long>(c.phases()) * across * c.plane / LINE | 1) * LINE;
  c.planes_size = stored * c.input_channel;
  for (int t = 0; t < c.tap_count(); t++) {
    const int dy = t / c.width * c.dilation, dx = t % c.width * c.dilation;
    c.taps[t] = (dy % c.stride * across + dx % c.stride) * static_cast<long>(c.plane) + dy / c.stride * pitch + dx / c.stride;
  }
}

[[maybe_unused]] static void copy_phases(const Conv& c, const float* map, float* to) {
  const int pitch = phases_pitch(c), across = phases_across(c);
  for (int phase = 0; phase < c.phases(); phase++)
    for (int first = 0; first < across; first++, to += c.plane) {
      const int rows = c.out.height + (c.reach() - phase) / c.stride;
      for (int row = 0; row < rows; row++) {
        const int y = row * c.stride + phase - c.padding;
        const float* from = y >= 0 && y < c.in.height ? map + c.in.first() + static_cast<long>(y) * c.in.stride : nullptr;
        copy_row_padded(from, first - c.padding_width, c.stride, c.in.width, pitch, c.fill, to + static_cast<long>(row) * pitch);
      }
    }
}

}  // namespace VARIANT
}  // namespace prunegym
