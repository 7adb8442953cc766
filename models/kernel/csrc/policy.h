// A gate's policy: features of a map, standardised, and two small layers.
#pragma once
#include "pooling.h"

namespace prunegym {
namespace VARIANT {

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

// sums += value * weights, for `padded` numbers (whole lines).
INLINE void add_scaled(float* sums, float value, const float* weights, int padded) {
  const Vec v = broadcast(value);
  for (int k = 0; k < padded; k += LANES) store(sums + k, load(sums + k) + v * load(weights + k));
}

// Calls f(place, feature) for the features of stored channels, standardised and clipped. Averages come first, then grids,
// each channel by channel.
template <typename F>
INLINE void for_features(const Gate& g, Kept in, const float* input, float* scratch, F f) {
  float* features = scratch + round_up(g.in.width, LANES) + LANES;
  const int cells = g.grid * g.grid;
  for (int i = 0; i < in.count; i++) {
    const float* map = input + static_cast<long>(i) * g.in.channel;
    if (g.in.is_vector()) {
      for (int k = 0; k < g.average + cells; k++) features[k] = *map;
    } else {
      if (g.average) *features = channel_average(g.in, map);
      if (g.grid) coarse_grid(g.in, g.grid, map, features + g.average, scratch);
    }
    for (int k = 0; k < g.average + cells; k++) {
      const int at = k < g.average ? in.index[i] : g.average * g.in_channels + in.index[i] * cells + k - g.average;
      const float z = (features[k] - g.mean[at]) * g.scale[at];
      f(at, z < -10 ? -10 : z > 10 ? 10 : z);
    }
  }
}

// All features of a map, for an external agent.
static void look(const Gate& g, Kept in, const float* input, float* features, float* scratch) {
  __builtin_memcpy(features, g.absent, g.features() * sizeof(float));
  for_features(g, in, input, scratch, [&](int at, float z) { features[at] = z; });
}

// Returns how many channels are kept, and writes their numbers. Only features of stored channels are computed. Absent
// channels contribute the same for every image (Gate::start_absent).
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
