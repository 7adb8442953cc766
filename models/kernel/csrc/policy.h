// A gate's policy: two small layers on features. The features themselves are in features.h and packed/layers.h.
#pragma once
#include "activation.h"

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

// Returns how many channels are kept, and writes their numbers. Only features of stored channels are computed. Absent
// channels contribute the same for every image (Gate::start_absent).
//
// features(scratch, f): calls f(place, feature) for them.
template <typename F>
INLINE int decide_by(const Gate& g, Kept in, int* kept, float* scratch, F features) {
  float* hidden = scratch;
  float* logits = hidden + g.hidden_padded;
  const bool all = in.count == g.in_channels;
  __builtin_memcpy(hidden, all ? g.start : g.start_absent, g.hidden_padded * sizeof(float));
  features(logits + g.width_padded, [&](int at, float z) {
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
