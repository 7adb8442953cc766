// Layers on packs that compute channel by channel, the way from floats to packs and back, and features of a policy.
#pragma once
#include "../policy.h"
#include "weights.h"

namespace prunegym {
namespace VARIANT {

INLINE int32_t* pack_row(const View& view, int pack, int y) { return packs_of(view.row(pack, y)); }
INLINE int packs_in(const View& view) { return packs_for(view.kept.count); }

// A row of packs in whole vectors; behind the last pixel the frame's.
template <typename F>
INLINE void store_packs(int32_t* to, int width, int zero, F packs_at) {
  const Bits fill = broadcast_bits(frame_of(zero));
  for (int x = 0; x < width; x += LANES) store_bits(to + x, bits_or(packs_at(x), first_lanes(width - x), fill));
}

static void to_packs(const View& in, const View& out) {
  const Unit unit = unit_of(out);
  for (int pack = 0; pack < packs_in(out); pack++) {
    const int there = smaller(PER, in.kept.count - PER * pack);
    for (int y = 0; y < out.map->height; y++) {
      const float* from[PER];
      for (int j = 0; j < PER; j++) from[j] = in.row(PER * pack + smaller(j, there - 1), y);
      store_packs(pack_row(out, pack, y), out.map->width, out.zero, [&](int x) {
        Vec v[PER] = {};
        UNROLL for (int j = 0; j < PER; j++)
          if (j < there) v[j] = stored(load(from[j] + x), unit);
        return packed(v);
      });
    }
  }
}

static void to_floats(const View& in, const View& out) {
  const Unit unit = unit_of(in);
  for (int c = 0; c < in.kept.count; c++)
    for (int y = 0; y < out.map->height; y++) {
      const int32_t* from = pack_row(in, c / PER, y);
      store_row(out.row(c, y), out.map->width, [&](int x) { return meant(number_of(load_bits(from + x), c % PER), unit); });
    }
}

static void convert(const LayerRecord&, const View& in, const View&, const View& out, float*) {
  if (out.is_packed()) to_packs(in, out);
  else to_floats(in, out);
}

// One pack of a row where a window may reach beyond the picture.
INLINE int32_t pool_checked(const LayerRecord& r, const View& in, int pack, int y, int x, Bits best) {
  const int top = larger(y * r.stride - r.padding, 0), bottom = smaller(y * r.stride - r.padding + r.kernel, in.map->height);
  const int left = larger(x * r.stride - r.padding, 0), right = smaller(x * r.stride - r.padding + r.kernel, in.map->width);
  for (int row = top; row < bottom; row++)
    for (int column = left; column < right; column++)
      best = larger_numbers(best, broadcast_bits(pack_row(in, pack, row)[column]));
  return best[0];
}

// Vectors of windows that are inside the picture, of which the last may overlap another; the others one by one.
static void max_pool(const LayerRecord& r, const View& in, const View&, const View& out, float*) {
  const int left = (r.padding + r.stride - 1) / r.stride, width = out.map->width;
  const int right = smaller(width, (in.map->width - r.kernel + r.padding) / r.stride + 1);
  const bool vectors = r.stride <= 2 && right - left >= LANES;
  const Bits none = broadcast_bits(least(r.activation == RELU, out.zero));
  for (int pack = 0; pack < packs_in(in); pack++)
    for (int y = 0; y < out.map->height; y++) {
      const int top = larger(y * r.stride - r.padding, 0), bottom = smaller(y * r.stride - r.padding + r.kernel, in.map->height);
      const auto column_of = [&](int column) {
        Bits best = none;
        for (int row = top; row < bottom; row++) best = larger_numbers(best, load_bits(pack_row(in, pack, row) + column));
        return best;
      };
      const auto window = [&](int x) {
        Bits best = none;
        const int first = x * r.stride - r.padding;
        if (r.stride == 1)
          for (int dx = 0; dx < r.kernel; dx++) best = larger_numbers(best, column_of(first + dx));
        for (int dx = 0; r.stride == 2 && dx < r.kernel; dx += 2) {  // two columns of the window from the same numbers
          const Vec a = (Vec)column_of(first + dx), b = (Vec)column_of(first + dx + LANES);
          best = larger_numbers(best, (Bits)even_lanes(a, b));
          if (dx + 1 < r.kernel) best = larger_numbers(best, (Bits)odd_lanes(a, b));
        }
        return best;
      };
      int32_t* to = pack_row(out, pack, y);
      for (int x = left; vectors && x < right - LANES; x += LANES) store_bits(to + x, window(x));
      if (vectors) store_bits(to + right - LANES, window(right - LANES));
      for (int x = 0; x < width; x++) {
        if (vectors && x == left) x = right;
        if (x < width) to[x] = pool_checked(r, in, pack, y, x, none);
      }
    }
}

// ResNet's shortcut; the numbers of channels, and how far they move, are whole packs.
static void subsample(const LayerRecord& r, const View& in, const View&, const View& out, float*) {
  const int32_t fill = frame_of(out.zero);
  for (int pack = 0; pack < packs_in(out); pack++) {
    const int source = pack - r.offset / PER;
    const bool there = source >= 0 && source < packs_in(in);
    for (int y = 0; y < out.map->height; y++) {
      int32_t* to = pack_row(out, pack, y);
      const int32_t* from = there ? pack_row(in, source, y * r.stride) : nullptr;
      if (r.stride == 2 && there) {
        const float* row = reinterpret_cast<const float*>(from);
        store_packs(to, out.map->width, out.zero,
                    [&](int x) { return (Bits)even_lanes(load(row + 2 * x), load(row + 2 * x + LANES)); });
        continue;
      }
      for (int x = 0; x < out.map->width; x++) to[x] = there ? from[x * r.stride] : fill;
    }
  }
}

// The averages of the channels, as floats.
static void average(const LayerRecord&, const View& in, const View&, const View& out, float*) {
  const float share = in.scale / in.map->pixels();
  for (int pack = 0; pack < packs_in(in); pack++) {
    float sums[PER];
    add_pixels(*in.map, packs_of(in.data) + static_cast<long>(pack) * in.map->channel, in.zero, sums);
    for (int j = 0; j < PER && PER * pack + j < in.kept.count; j++) out.data[PER * pack + j] = sums[j] * share;
  }
}

// A gate's features, as for_features of features.h does for floats; f(place, feature).
template <typename F>
INLINE void for_packed_features(const Gate& g, const View& in, float* scratch, F f) {
  const Map& map = *in.map;
  const int cells = g.grid * g.grid, padded = round_up(cells, LINE), line = round_up(map.width, LINE) + 2 * LINE;
  const float share = in.scale / map.pixels();
  float* const grids = scratch;  // (PER, padded)
  float* const columns = grids + PER * padded;  // (PER, line)
  for (int pack = 0; pack < packs_in(in); pack++) {
    const int32_t* from = packs_of(in.data) + static_cast<long>(pack) * map.channel;
    float sums[PER];
    if (g.average && !averages_cells(g)) add_pixels(map, from, in.zero, sums);
    for (int gy = 0; gy < g.grid; gy++) {
      const int top = g.edges[2 * gy], rows = g.edges[2 * gy + 1] - top;
      const int32_t* first = from + map.first() + static_cast<long>(top) * map.stride;
      for (int x = 0; x < map.width; x += LANES) {
        Vec totals[PER];
        add_columns(first + x, map.stride, rows, in.zero, totals);
        UNROLL for (int j = 0; j < PER; j++) store(columns + j * line + x, totals[j] * in.scale);
      }
      for (int j = 0; j < PER; j++) average_cells(g, gy, columns + j * line, grids + j * padded + gy * g.grid);
    }
    for (int j = 0; j < PER && PER * pack + j < in.kept.count; j++) {
      const int channel = in.kept.index[PER * pack + j];
      const float* grid = grids + j * padded;
      const auto standardised = [&](int at, float feature) {
        const float z = (feature - g.mean[at]) * g.scale[at];
        f(at, z < -10 ? -10 : z > 10 ? 10 : z);
      };
      if (g.average) standardised(channel, averages_cells(g) ? average_of(grid, cells) : sums[j] * share);
      for (int k = 0; k < cells; k++) standardised(g.average * g.in_channels + channel * cells + k, grid[k]);
    }
  }
}

static void look_at_packs(const Gate& g, const View& in, float* features, float* scratch) {
  std::memcpy(features, g.absent, g.features() * sizeof(float));
  for_packed_features(g, in, scratch, [&](int at, float z) { features[at] = z; });
}

static int decide_on_packs(const Gate& g, const View& in, int* kept, float* scratch) {
  return decide_by(g, in.kept, kept, scratch, [&](float* own, auto f) { for_packed_features(g, in, own, f); });
}

}  // namespace VARIANT
}  // namespace prunegym
