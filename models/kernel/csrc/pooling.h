// Poolings of windows, and the average over all pixels.
#pragma once
#include "activation.h"

namespace prunegym {
namespace VARIANT {

// Pixels first..last - 1 of a row's windows, as far as they are inside the picture, added or compared one by one.
template <bool MAX>
static void pool_checked(const LayerRecord& r, const View& in, int channel, int y, int first, int last, float* to) {
  const int top = y * r.stride - r.padding, low = larger(top, 0), high = smaller(top + r.kernel, in.map->height);
  for (int x = first; x < last; x++) {
    const int left = x * r.stride - r.padding;
    const int begin = larger(left, 0), end = smaller(left + r.kernel, in.map->width);
    float total = MAX ? -__builtin_inff() : 0;
    for (int row = low; row < high; row++) {
      for (int column = begin; column < end; column++) {
        const float v = in.row(channel, row)[column];
        if (!MAX) total += v;
        else if (total < v) total = v;
      }
    }
    // As torch does: divide by the window's size, without the part of a last window beyond the padding.
    const int rows = r.average ? smaller(top + r.kernel, in.map->height + r.padding) - top : high - low;
    const int columns = r.average ? smaller(left + r.kernel, in.map->width + r.padding) - left : end - begin;
    to[x] = MAX ? total : total / (static_cast<float>(rows) * columns);
  }
}

// A row by vectors, with stride 1 or 2. `line` gets the results of whole columns, between numbers that change nothing.
template <bool MAX>
static void pool_row(const LayerRecord& r, const View& in, int channel, int y, int width, float* to, float* line) {
  const int top = y * r.stride - r.padding, low = larger(top, 0), high = smaller(top + r.kernel, in.map->height);
  if (r.stride > 2 || low >= high) return pool_checked<MAX>(r, in, channel, y, 0, width, to);
  const int end = larger((width - 1) * r.stride + r.kernel, r.padding + in.map->width);
  const float nothing = MAX ? -__builtin_inff() : 0;
  for (int x = 0; x < r.padding; x++) line[x] = nothing;
  for (int x = 0; x < in.map->width; x += LANES) {
    Vec best = load(in.row(channel, low) + x);
    for (int row = low + 1; row < high; row++) {
      const Vec next = load(in.row(channel, row) + x);
      best = MAX ? max(best, next) : best + next;
    }
    store(line + r.padding + x, best);
  }
  for (int x = r.padding + in.map->width; x < end; x++) line[x] = nothing;
  const int rows = r.average ? smaller(top + r.kernel, in.map->height + r.padding) - top : high - low;
  const float share = 1.f / (static_cast<float>(rows) * r.kernel);
  store_row(to, width, [&](int first) {
    Vec best = broadcast(nothing);
    for (int dx = 0; dx < r.kernel; dx++) {
      const float* from = line + first * r.stride + dx;
      const Vec next = r.stride == 1 ? load(from) : even_lanes(load(from), load(from + LANES));
      best = MAX ? max(best, next) : best + next;
    }
    return MAX ? best : best * share;
  });
  if (MAX) return;
  // Windows that reach beyond the picture may have another size.
  const int left = smaller(width, (r.padding + r.stride - 1) / r.stride);
  const int right = larger(left, smaller(width, (in.map->width - r.kernel + r.padding) / r.stride + 1));
  pool_checked<MAX>(r, in, channel, y, 0, left, to);
  pool_checked<MAX>(r, in, channel, y, right, width, to);
}

template <bool MAX>
INLINE void pool(const LayerRecord& r, const View& in, const View& out, float* line) {
  // If no window reaches beyond the picture.
  const bool by_two = MAX && r.kernel == 2 && r.stride == 2 && r.padding == 0 && 2 * out.map->width <= in.map->width &&
                      2 * out.map->height <= in.map->height;
  const int width = out.map->width;
  for (int c = 0; c < in.kept.count; c++) {
    for (int y = 0; y < out.map->height; y++) {
      float* to = out.row(c, y);
      if (!by_two) {
        pool_row<MAX>(r, in, c, y, width, to, line);
      } else {
        const float *a = in.row(c, 2 * y), *b = in.row(c, 2 * y + 1);
        store_row(to, width, [&](int x) {
          const Vec left = max(load(a + 2 * x), load(b + 2 * x));
          const Vec right = max(load(a + 2 * x + LANES), load(b + 2 * x + LANES));
          return max(even_lanes(left, right), odd_lanes(left, right));
        });
      }
      if (r.activation) activate(r.activation, to, width);
    }
  }
}

static void max_pool(const LayerRecord& r, const View& in, const View&, const View& out, float* scratch) {
  pool<true>(r, in, out, scratch);
}

static void avg_pool(const LayerRecord& r, const View& in, const View&, const View& out, float* scratch) {
  pool<false>(r, in, out, scratch);
}

// The average of all pixels of a channel. Zero columns add nothing, so the flat row from the origin is summed.
INLINE float channel_average(const Map& map, const float* channel) {
  const int length = map.height * map.stride;  // the numbers after it, up to a whole vector, are zeros of the frame
  const float* x = channel + map.origin;
  Vec total{}, other{};
  for (int i = 0; i < length; i += 2 * LANES) {
    total += load(x + i);
    if (i + LANES < length) other += load(x + i + LANES);
  }
  return sum(total + other) / map.pixels();
}

static void average(const LayerRecord&, const View& in, const View&, const View& out, float*) {
  for (int c = 0; c < in.kept.count; c++)
    out.data[c] = channel_average(*in.map, in.data + static_cast<long>(c) * in.map->channel);
}

}  // namespace VARIANT
}  // namespace prunegym
