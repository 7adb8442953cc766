// Everything that is no convolution: pooling, sums, the shortcut, the linear layer, and the gate's policy.
#pragma once
#include "simd.h"

namespace prunegym {
namespace VARIANT {

// Pixels first..last - 1 of a row, each reading the part of its window that is inside the picture.
static void pool_checked(const LayerRecord& r, const View& in, int channel, int y, int first, int last, float* to) {
  const int top = y * r.stride - r.padding;
  for (int x = first; x < last; x++) {
    const int left = x * r.stride - r.padding;
    float best = -__builtin_inff();
    for (int row = larger(top, 0); row < smaller(top + r.kernel, in.map->height); row++) {
      for (int column = larger(left, 0); column < smaller(left + r.kernel, in.map->width); column++) {
        const float v = in.row(channel, row)[column];
        if (best < v) best = v;
      }
    }
    to[x] = r.relu && best < 0 ? 0 : best;
  }
}

// A row by vectors where whole windows are inside the picture, stride 1 or 2; the last vector may overlap the one before.
static void pool_row(const LayerRecord& r, const View& in, int channel, int y, int width, float* to) {
  const int top = y * r.stride - r.padding, left = (r.padding + r.stride - 1) / r.stride;
  const int right = (in.map->width - r.kernel + r.padding) / r.stride + 1;
  const int low = larger(top, 0), high = smaller(top + r.kernel, in.map->height);
  if (r.stride > 2 || right - left < LANES || low >= high) return pool_checked(r, in, channel, y, 0, width, to);
  pool_checked(r, in, channel, y, 0, left, to);
  pool_checked(r, in, channel, y, right, width, to);
  const auto column_max = [&](int column) {
    Vec best = load(in.row(channel, low) + column);
    for (int row = low + 1; row < high; row++) best = max(best, load(in.row(channel, row) + column));
    return best;
  };
  const auto window_max = [&](int x) {
    Vec best = Vec{} - __builtin_inff();
    for (int dx = 0; dx < r.kernel; dx++) {
      const int column = x * r.stride + dx - r.padding;
      best = max(best, r.stride == 1 ? column_max(column) : even_lanes(column_max(column), column_max(column + LANES)));
    }
    return relu_if(r.relu, best);
  };
  for (int x = left; x < right - LANES; x += LANES) store(to + x, window_max(x));
  store(to + right - LANES, window_max(right - LANES));
}

static void max_pool(const LayerRecord& r, const View& in, const View&, const View& out, float*) {
  const bool by_two = r.kernel == 2 && r.stride == 2 && r.padding == 0;
  for (int c = 0; c < in.kept.count; c++) {
    for (int y = 0; y < out.map->height; y++) {
      if (!by_two) {
        pool_row(r, in, c, y, out.map->width, out.row(c, y));
        continue;
      }
      const float *a = in.row(c, 2 * y), *b = in.row(c, 2 * y + 1);
      store_row(out.row(c, y), out.map->width, [&](int x) {
        const Vec left = max(load(a + 2 * x), load(b + 2 * x));
        const Vec right = max(load(a + 2 * x + LANES), load(b + 2 * x + LANES));
        return relu_if(r.relu, max(even_lanes(left, right), odd_lanes(left, right)));
      });
    }
  }
}

// out = a + b (or a alone), with ReLU if asked. out may be a or b where its row stride is the same.
static void add(const LayerRecord& r, const View& a, const View& b, const View& out, float*) {
  for (int c = 0; c < a.kept.count; c++) {
    for (int y = 0; y < out.map->height; y++) {
      const float *row = a.row(c, y), *other = b.data ? b.row(c, y) : nullptr;
      float* to = out.row(c, y);
      for (int x = 0; x < out.map->width; x++) {
        const float v = other ? row[x] + other[x] : row[x];
        to[x] = r.relu && v < 0 ? 0 : v;
      }
    }
  }
}

// ResNet's shortcut without parameters: every stride-th pixel, channels moved up by `offset`, zeros in the others.
static void subsample(const LayerRecord& r, const View& in, const View&, const View& out, float*) {
  const int width = out.map->width;
  for (int c = 0; c < out.channels; c++) {
    const bool zero = c < r.offset || c - r.offset >= in.channels;
    for (int y = 0; y < out.map->height; y++) {
      const float* from = zero ? nullptr : in.row(c - r.offset, y * r.stride);
      float* to = out.row(c, y);
      if (zero) store_row(to, width, [](int) { return Vec{}; });
      else if (r.stride == 1) store_row(to, width, [&](int x) { return load(from + x); });
      else if (r.stride == 2)
        store_row(to, width, [&](int x) { return even_lanes(load(from + 2 * x), load(from + 2 * x + LANES)); });
      else
        for (int x = 0; x < width; x++) to[x] = from[x * r.stride];
    }
  }
}

// The average over all pixels of a channel. The zero columns add nothing, so the flat row from the origin is summed.
INLINE float channel_average(const Map& map, const float* channel) {
  const int length = map.height * map.stride;  // numbers after it, up to a whole vector, are zeros of the frame
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

INLINE float dot(const float* a, const float* b, long length) {
  Vec total{}, other{};
  long i = 0;
  for (; i + LANES < length; i += 2 * LANES) {
    total += load(a + i) * load(b + i);
    other += load(a + i + LANES) * load(b + i + LANES);
  }
  if (i < length) total += load(a + i) * load(b + i);
  return sum(total + other);
}

// Many pixels a channel: one dot product for each kept channel. Few: the kept features are put at their places among
// zeros and one dot product runs over all. Features are followed by zeros up to a whole vector.
static void linear(const LayerRecord& r, const View& in, const View&, const View& out, float* scratch) {
  const int pixels = in.map->pixels(), padded = round_up(pixels, LANES);
  const bool apart = pixels >= LANES;
  const long all = static_cast<long>(in.channels) * pixels;
  const long size = apart ? static_cast<long>(in.kept.count) * padded : round_up(all, LANES);
  __builtin_memset(scratch, 0, size * sizeof(float));
  for (int i = 0; i < in.kept.count; i++) {
    float* to = scratch + (apart ? static_cast<long>(i) * padded : static_cast<long>(in.kept.index[i]) * pixels);
    for (int y = 0; y < in.map->height; y++)
      for (int x = 0; x < in.map->width; x++) *to++ = in.row(i, y)[x];
  }
  for (int j = 0; j < out.kept.count; j++) {
    const float* weight = r.weight + static_cast<long>(out.kept.index[j]) * all;
    float v = r.bias[out.kept.index[j]];
    if (!apart) v += dot(weight, scratch, all);
    for (int i = 0; apart && i < in.kept.count; i++)
      v += dot(weight + static_cast<long>(in.kept.index[i]) * pixels, scratch + static_cast<long>(i) * padded, pixels);
    out.data[j] = r.relu && v < 0 ? 0 : v;
  }
}

// ---- The gate's policy.

// Bounds of the cells of a grid, as in torch's adaptive_avg_pool2d.
INLINE int cell_begin(int cell, int size, int grid) { return static_cast<int>(static_cast<long>(cell) * size / grid); }
INLINE int cell_end(int cell, int size, int grid) {
  return static_cast<int>((static_cast<long>(cell + 1) * size + grid - 1) / grid);
}

// Averages over the cells of a grid x grid raster.
static void coarse_grid(const Map& map, int grid, const float* in, float* out, float* columns) {
  for (int gy = 0; gy < grid; gy++) {
    const int top = cell_begin(gy, map.height, grid), bottom = cell_end(gy, map.height, grid);
    for (int x = 0; x < map.width; x += LANES) {
      const float* from = in + map.first() + x;
      Vec total{};
      for (int y = top; y < bottom; y++) total += load(from + static_cast<long>(y) * map.stride);
      store(columns + x, total);
    }
    for (int gx = 0; gx < grid; gx++) {
      const int left = cell_begin(gx, map.width, grid), right = cell_end(gx, map.width, grid);
      float total = 0;
      for (int x = left; x < right; x++) total += columns[x];
      *out++ = total / ((bottom - top) * (right - left));
    }
  }
}

// sums += value * weights, over `padded` numbers (whole lines).
INLINE void add_scaled(float* sums, float value, const float* weights, int padded) {
  const Vec v = broadcast(value);
  for (int k = 0; k < padded; k += LANES) store(sums + k, load(sums + k) + v * load(weights + k));
}

// Calls f(place, feature) for the features of the channels that are there, standardised and clipped. Of all features the
// averages come first, then the grids, each channel by channel.
template <typename F>
INLINE void for_features(const Gate& g, Kept in, const float* input, float* scratch, F f) {
  float* features = scratch + round_up(g.in.width, LANES) + LANES;
  const int cells = g.grid * g.grid;
  for (int i = 0; i < in.count; i++) {
    const float* map = input + static_cast<long>(i) * g.in.channel;
    if (g.average) *features = channel_average(g.in, map);
    if (g.grid) coarse_grid(g.in, g.grid, map, features + g.average, scratch);
    for (int k = 0; k < g.average + cells; k++) {
      const int at = k < g.average ? in.index[i] : g.average * g.in_channels + in.index[i] * cells + k - g.average;
      const float z = (features[k] - g.mean[at]) * g.scale[at];
      f(at, z < -10 ? -10 : z > 10 ? 10 : z);
    }
  }
}

// All features of a map: what an agent outside decides by.
static void look(const Gate& g, Kept in, const float* input, float* features, float* scratch) {
  __builtin_memcpy(features, g.absent, g.features() * sizeof(float));
  for_features(g, in, input, scratch, [&](int at, float z) { features[at] = z; });
}

// Returns the number of kept channels and writes their numbers. Only the features of channels that are there are
// computed; what absent ones contribute is the same for every image (Gate::start_absent).
static int decide(const Gate& g, Kept in, const float* input, int* kept, float* scratch) {
  float* hidden = scratch;
  float* logits = hidden + g.hidden_padded;
  const bool all = in.count == g.in_channels;
  __builtin_memcpy(hidden, all ? g.start : g.start_absent, g.hidden_padded * sizeof(float));
  for_features(g, in, input, logits + g.width_padded, [&](int at, float z) {
    add_scaled(hidden, all ? z : z - g.absent[at], g.weight1 + static_cast<long>(at) * g.hidden_padded, g.hidden_padded);
  });
  __builtin_memcpy(logits, g.bias2, g.width_padded * sizeof(float));
  for (int h = 0; h < g.hidden; h++)
    if (hidden[h] > 0) add_scaled(logits, hidden[h], g.weight2 + static_cast<long>(h) * g.width_padded, g.width_padded);
  int count = 0;
  for (int c = 0; c < g.width; c++) {
    kept[count] = c;
    count += logits[c] > 0;
  }
  return count;
}

}  // namespace VARIANT
}  // namespace prunegym
