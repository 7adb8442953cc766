// Features of a map of floats, standardised, and what is decided by them.
#pragma once
#include "policy.h"
#include "pooling.h"

namespace prunegym {
namespace VARIANT {

// Calls f(place, feature) for the features of stored channels, standardised and clipped. Averages come first, then grids,
// each channel by channel.
template <typename F>
INLINE void for_features(const Gate& g, Kept in, const float* input, float* scratch, F f) {
  float* const columns = scratch;
  float* features = scratch + round_up(g.in.width, LINE) + 2 * LINE;
  const int cells = g.grid * g.grid;
  for (int i = 0; i < in.count; i++) {
    const float* map = input + static_cast<long>(i) * g.in.channel;
    if (g.in.is_vector()) {
      for (int k = 0; k < g.average + cells; k++) features[k] = *map;
    } else {
      for (int gy = 0; gy < g.grid; gy++) {
        const int top = g.edges[2 * gy], bottom = g.edges[2 * gy + 1];
        for (int x = 0; x < g.in.width; x += LANES) {
          const float* from = map + g.in.first() + x;
          Vec total{};
          for (int y = top; y < bottom; y++) total += load(from + static_cast<long>(y) * g.in.stride);
          store(columns + x, total);
        }
        average_cells(g, gy, columns, features + g.average + gy * g.grid);
      }
      if (g.average) *features = averages_cells(g) ? average_of(features + 1, cells) : channel_average(g.in, map);
    }
    for (int k = 0; k < g.average + cells; k++) {
      const int at = k < g.average ? in.index[i] : g.average * g.in_channels + in.index[i] * cells + k - g.average;
      const float z = (features[k] - g.mean[at]) * g.scale[at];
      f(at, z < -10 ? -10 : z > 10 ? 10 : z);
    }
  }
}

// All features of a map, for an external agent.
static void look(const Gate& g, const View& in, float* features, float* scratch) {
  __builtin_memcpy(features, g.absent, g.features() * sizeof(float));
  for_features(g, in.kept, in.data, scratch, [&](int at, float z) { features[at] = z; });
}

static int decide(const Gate& g, const View& in, int* kept, float* scratch) {
  return decide_by(g, in.kept, kept, scratch, [&](float* own, auto f) { for_features(g, in.kept, in.data, own, f); });
}

}  // namespace VARIANT
}  // namespace prunegym
