// Everything that is no convolution: pooling, sums, the shortcut, the linear layer, and the gate's policy.
#pragma once
#include "simd.h"

namespace prunegym {
namespace VARIANT {

// A row of pixels, stored in whole vectors with zeros after the last (see store_grid).
template <typename F>
INLINE void store_row(float* to, int width, F pixels_at) {
  for (int x = 0; x < width; x += LANES) store(to + x, keep(pixels_at(x), first_lanes(width - x)));
}

// Pixels first..last - 1 of a row, each reading the part of its window that is inside the picture.
static void pool_checked(const Pool& p, const float* in, int y, int first, int last, float* to) {
  for (int x = first; x < last; x++) {
    float best = -__builtin_inff();
    for (int dy = 0; dy < p.kernel; dy++) {
      const int row = y * p.stride + dy - p.padding;
      if (row < 0 || row >= p.in.height) continue;
      for (int dx = 0; dx < p.kernel; dx++) {
        const int column = x * p.stride + dx - p.padding;
        if (column < 0 || column >= p.in.width) continue;
        const float v = in[p.in.first() + static_cast<long>(row) * p.in.stride + column];
        if (best < v) best = v;
      }
    }
    to[x] = p.relu && best < 0 ? 0 : best;
  }
}

// A row by vectors where whole windows are inside the picture, stride 1 or 2; the last vector may overlap the one before.
static void pool_row(const Pool& p, const float* in, int y, float* to) {
  const int top = y * p.stride - p.padding, left = (p.padding + p.stride - 1) / p.stride;
  const int right = (p.in.width - p.kernel + p.padding) / p.stride + 1;
  const int low = top < 0 ? 0 : top, high = top + p.kernel < p.in.height ? top + p.kernel : p.in.height;
  if (p.stride > 2 || right - left < LANES || low >= high) return pool_checked(p, in, y, 0, p.out.width, to);
  pool_checked(p, in, y, 0, left, to);
  pool_checked(p, in, y, right, p.out.width, to);
  const float* rows = in + p.in.first() - p.padding;
  const auto column_max = [&](int column) {
    Vec best = load(rows + static_cast<long>(low) * p.in.stride + column);
    for (int row = low + 1; row < high; row++) best = max(best, load(rows + static_cast<long>(row) * p.in.stride + column));
    return best;
  };
  const auto window_max = [&](int x) {
    Vec best = Vec{} - __builtin_inff();
    for (int dx = 0; dx < p.kernel; dx++) {
      const int column = x * p.stride + dx;
      best = max(best, p.stride == 1 ? column_max(column) : even_lanes(column_max(column), column_max(column + LANES)));
    }
    return relu_if(p.relu, best);
  };
  for (int x = left; x < right - LANES; x += LANES) store(to + x, window_max(x));
  store(to + right - LANES, window_max(right - LANES));
}

static void max_pool(const Pool& p, int channels, const float* in, float* out) {
  const bool by_two = p.kernel == 2 && p.stride == 2 && p.padding == 0;
  for (int c = 0; c < channels; c++, in += p.in.channel, out += p.out.channel) {
    for (int y = 0; y < p.out.height; y++) {
      float* to = out + p.out.first() + static_cast<long>(y) * p.out.stride;
      if (!by_two) {
        pool_row(p, in, y, to);
        continue;
      }
      const float* a = in + p.in.first() + 2L * y * p.in.stride;
      const float* b = a + p.in.stride;
      store_row(to, p.out.width, [&](int x) {
        const Vec left = max(load(a + 2 * x), load(b + 2 * x));
        const Vec right = max(load(a + 2 * x + LANES), load(b + 2 * x + LANES));
        return relu_if(p.relu, max(even_lanes(left, right), odd_lanes(left, right)));
      });
    }
  }
}

// out = a + b (or a alone), with ReLU if asked. out may be a or b where its row stride is the same.
static void add(const Map& out_map, int channels, const float* a, const Map& a_map, const float* b, const Map* b_map,
                bool relu, float* out) {
  for (int c = 0; c < channels; c++, out += out_map.channel) {
    for (int y = 0; y < out_map.height; y++) {
      const float* row = a + static_cast<long>(c) * a_map.channel + a_map.first() + static_cast<long>(y) * a_map.stride;
      const float* other =
          b ? b + static_cast<long>(c) * b_map->channel + b_map->first() + static_cast<long>(y) * b_map->stride : nullptr;
      float* to = out + out_map.first() + static_cast<long>(y) * out_map.stride;
      for (int x = 0; x < out_map.width; x++) {
        const float v = other ? row[x] + other[x] : row[x];
        to[x] = relu && v < 0 ? 0 : v;
      }
    }
  }
}

// ResNet's shortcut without parameters: every stride-th pixel, channels moved up by `offset`, zeros in the others.
static void subsample(const Map& in_map, int in_channels, const float* in, int stride, int offset, const Map& out_map,
                      int out_channels, float* out) {
  for (int c = 0; c < out_channels; c++, out += out_map.channel) {
    const int source = c - offset;
    const bool zero = source < 0 || source >= in_channels;
    const float* from = in + static_cast<long>(zero ? 0 : source) * in_map.channel + in_map.first();
    for (int y = 0; y < out_map.height; y++, from += static_cast<long>(stride) * in_map.stride) {
      float* to = out + out_map.first() + static_cast<long>(y) * out_map.stride;
      if (zero) store_row(to, out_map.width, [](int) { return Vec{}; });
      else if (stride == 1) store_row(to, out_map.width, [&](int x) { return load(from + x); });
      else if (stride == 2)
        store_row(to, out_map.width, [&](int x) { return even_lanes(load(from + 2 * x), load(from + 2 * x + LANES)); });
      else
        for (int x = 0; x < out_map.width; x++) to[x] = from[x * stride];
    }
  }
}

// Averages over all pixels. The zero columns add nothing, so the flat row from the origin is summed.
static void average(const Map& map, int channels, const float* in, float* out) {
  const int length = map.height * map.stride;  // numbers after it, up to a whole vector, are zeros of the frame
  for (int c = 0; c < channels; c++) {
    const float* x = in + static_cast<long>(c) * map.channel + map.origin;
    Vec total{}, other{};
    for (int i = 0; i < length; i += 2 * LANES) {
      total += load(x + i);
      if (i + LANES < length) other += load(x + i + LANES);
    }
    out[c] = sum(total + other) / map.pixels();
  }
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
static void linear(const Linear& l, Kept in, Kept out, const float* input, float* output, float* scratch) {
  const int pixels = l.in.pixels();
  const bool apart = pixels >= LANES;
  const int padded = round_up(pixels, LANES);
  const long all = static_cast<long>(l.in_channels) * pixels;
  const long size = apart ? static_cast<long>(in.count) * padded : round_up(all, LANES);
  __builtin_memset(scratch, 0, size * sizeof(float));
  for (int i = 0; i < in.count; i++) {
    float* to = scratch + (apart ? static_cast<long>(i) * padded : static_cast<long>(in.index[i]) * pixels);
    const float* from = input + static_cast<long>(i) * l.in.channel + l.in.first();
    for (int y = 0; y < l.in.height; y++)
      for (int x = 0; x < l.in.width; x++) *to++ = from[static_cast<long>(y) * l.in.stride + x];
  }
  for (int j = 0; j < out.count; j++) {
    const float* weight = l.weight + static_cast<long>(out.index[j]) * all;
    float v = l.bias[out.index[j]];
    if (!apart) v += dot(weight, scratch, all);
    for (int i = 0; apart && i < in.count; i++)
      v += dot(weight + static_cast<long>(in.index[i]) * pixels, scratch + static_cast<long>(i) * padded, pixels);
    output[j] = l.relu && v < 0 ? 0 : v;
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

// Features of channel i of the map go to f: the average, then the grid.
static void channel_features(const Gate& g, const float* map, int i, float* f, float* columns) {
  const float* in = map + static_cast<long>(i) * g.in.channel;
  if (g.average) average(g.in, 1, in, f);
  if (g.grid) coarse_grid(g.in, g.grid, in, f + g.average, columns);
}

// Where feature k of a channel is among all: averages of all channels come first, then the grids.
INLINE int feature_place(const Gate& g, int channel, int k) {
  return k < g.average ? channel : g.average * g.in_channels + channel * g.grid * g.grid + k - g.average;
}

INLINE float standardised(const Gate& g, int at, float feature) {
  const float z = (feature - g.mean[at]) * g.scale[at];
  return z < -10 ? -10 : z > 10 ? 10 : z;
}

// All features of a map, standardised: what an agent outside decides by.
static void look(const Gate& g, Kept in, const float* input, float* features, float* scratch) {
  float* f = scratch + round_up(g.in.width, LANES) + LANES;
  __builtin_memcpy(features, g.absent, g.features() * sizeof(float));
  for (int i = 0; i < in.count; i++) {
    channel_features(g, input, i, f, scratch);
    for (int k = 0; k < g.average + g.grid * g.grid; k++) {
      const int at = feature_place(g, in.index[i], k);
      features[at] = standardised(g, at, f[k]);
    }
  }
}

// Returns the number of kept channels and writes their numbers. Only the features of channels that are there are
// computed; what absent ones contribute is the same for every image (Gate::start_absent).
static int decide(const Gate& g, Kept in, const float* input, int* kept, float* scratch) {
  float* hidden = scratch;
  float* logits = hidden + g.hidden_padded;
  float* columns = logits + g.width_padded;
  float* f = columns + round_up(g.in.width, LANES) + LANES;
  const bool all = in.count == g.in_channels;
  const int cells = g.grid * g.grid;
  __builtin_memcpy(hidden, all ? g.start : g.start_absent, g.hidden_padded * sizeof(float));
  for (int i = 0; i < in.count; i++) {
    channel_features(g, input, i, f, columns);
    const int channel = in.index[i];
    for (int k = 0; k < g.average + cells; k++) {
      const int at = feature_place(g, channel, k);
      const float z = standardised(g, at, f[k]);
      add_scaled(hidden, all ? z : z - g.absent[at], g.weight1 + static_cast<long>(at) * g.hidden_padded, g.hidden_padded);
    }
  }
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
