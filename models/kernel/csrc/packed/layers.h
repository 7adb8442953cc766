// Layers on bytes that compute channel by channel, the way from floats to bytes and back, and features of a policy.
#pragma once
#include "../policy.h"
#include "quads.h"

namespace prunegym {
namespace VARIANT {

INLINE int32_t* quad_row(const View& view, int quad, int y) { return quads_of(view.row(quad, y)); }
INLINE int quads_in(const View& view) { return (view.kept.count + 3) / 4; }

// A row of quads in whole vectors; behind the last pixel the frame's bytes.
template <typename F>
INLINE void store_quads(int32_t* to, int width, int zero, F quads_at) {
  const Bits fill = broadcast_bits(zero * 0x01010101);
  for (int x = 0; x < width; x += LANES) store_bits(to + x, bits_or(quads_at(x), first_lanes(width - x), fill));
}

// q = x / scale + zero, rounded.
static void to_bytes(const View& in, const View& out) {
  const float inverse = 1 / out.scale;
  for (int quad = 0; quad < quads_in(out); quad++)
    for (int y = 0; y < out.map->height; y++)
      store_quads(quad_row(out, quad, y), out.map->width, out.zero, [&](int x) {
        Bits quads{};
        for (int j = 0; j < 4 && 4 * quad + j < in.kept.count; j++) {
          Vec v = load(in.row(4 * quad + j, y) + x) * inverse;
          v = v + static_cast<float>(out.zero);
          quads |= to_byte(v) << (8 * j);
        }
        return quads;
      });
}

static void to_floats(const View& in, const View& out) {
  for (int c = 0; c < in.kept.count; c++)
    for (int y = 0; y < out.map->height; y++) {
      const int32_t* from = quad_row(in, c / 4, y);
      store_row(out.row(c, y), out.map->width,
                [&](int x) { return (byte_of(load_bits(from + x), c % 4) - static_cast<float>(in.zero)) * in.scale; });
    }
}

static void convert(const LayerRecord&, const View& in, const View&, const View& out, float*) {
  if (out.is_bytes()) to_bytes(in, out);
  else to_floats(in, out);
}

// One number of a row where a window may reach beyond the picture.
INLINE int32_t pool_checked(const LayerRecord& r, const View& in, int quad, int y, int x) {
  const int top = larger(y * r.stride - r.padding, 0), bottom = smaller(y * r.stride - r.padding + r.kernel, in.map->height);
  const int left = larger(x * r.stride - r.padding, 0), right = smaller(x * r.stride - r.padding + r.kernel, in.map->width);
  uint8_t best[4] = {};
  for (int row = top; row < bottom; row++)
    for (int column = left; column < right; column++) {
      uint8_t bytes[4];
      std::memcpy(bytes, quad_row(in, quad, row) + column, 4);
      for (int j = 0; j < 4; j++) best[j] = bytes[j] > best[j] ? bytes[j] : best[j];
    }
  int32_t found;
  std::memcpy(&found, best, 4);
  return found;
}

// Vectors of windows that are inside the picture, of which the last may overlap another; the others one by one.
static void max_pool(const LayerRecord& r, const View& in, const View&, const View& out, float*) {
  const int left = (r.padding + r.stride - 1) / r.stride, width = out.map->width;
  const int right = smaller(width, (in.map->width - r.kernel + r.padding) / r.stride + 1);
  const bool vectors = r.stride <= 2 && right - left >= LANES;
  const Bits least = broadcast_bits(r.activation == RELU ? out.zero * 0x01010101 : 0);
  for (int quad = 0; quad < quads_in(in); quad++)
    for (int y = 0; y < out.map->height; y++) {
      const int top = larger(y * r.stride - r.padding, 0), bottom = smaller(y * r.stride - r.padding + r.kernel, in.map->height);
      const auto column_of = [&](int column) {
        Bits best = least;
        for (int row = top; row < bottom; row++) best = max_bytes(best, load_bits(quad_row(in, quad, row) + column));
        return best;
      };
      const auto window = [&](int x) {
        Bits best = least;
        const int first = x * r.stride - r.padding;
        if (r.stride == 1)
          for (int dx = 0; dx < r.kernel; dx++) best = max_bytes(best, column_of(first + dx));
        for (int dx = 0; r.stride == 2 && dx < r.kernel; dx += 2) {  // two columns of the window from the same numbers
          const Vec a = (Vec)column_of(first + dx), b = (Vec)column_of(first + dx + LANES);
          best = max_bytes(best, (Bits)even_lanes(a, b));
          if (dx + 1 < r.kernel) best = max_bytes(best, (Bits)odd_lanes(a, b));
        }
        return best;
      };
      int32_t* to = quad_row(out, quad, y);
      for (int x = left; vectors && x < right - LANES; x += LANES) store_bits(to + x, window(x));
      if (vectors) store_bits(to + right - LANES, window(right - LANES));
      for (int x = 0; x < width; x++) {
        if (vectors && x == left) x = right;
        if (x < width) to[x] = max_bytes(broadcast_bits(pool_checked(r, in, quad, y, x)), least)[0];
      }
    }
}

// ResNet's shortcut; the numbers of channels, and how far they move, are whole quads.
static void subsample(const LayerRecord& r, const View& in, const View&, const View& out, float*) {
  const int32_t fill = out.zero * 0x01010101;
  for (int quad = 0; quad < quads_in(out); quad++) {
    const int source = quad - r.offset / 4;
    const bool there = source >= 0 && source < quads_in(in);
    for (int y = 0; y < out.map->height; y++) {
      int32_t* to = quad_row(out, quad, y);
      const int32_t* from = there ? quad_row(in, source, y * r.stride) : nullptr;
      if (r.stride == 2 && there) {
        const float* row = reinterpret_cast<const float*>(from);
        store_quads(to, out.map->width, out.zero,
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
  for (int quad = 0; quad < quads_in(in); quad++) {
    long sums[4];
    sum_pixels(*in.map, quads_of(in.data) + static_cast<long>(quad) * in.map->channel, in.zero, sums);
    for (int j = 0; j < 4 && 4 * quad + j < in.kept.count; j++) out.data[4 * quad + j] = static_cast<float>(sums[j]) * share;
  }
}

// A gate's features, as for_features of policy.h does for floats; f(place, feature).
template <typename F>
INLINE void for_byte_features(const Gate& g, const View& in, float* scratch, F f) {
  const Map& map = *in.map;
  const int cells = g.grid * g.grid;
  const float share = in.scale / map.pixels();
  float* const picture = scratch;  // one channel as floats, in the layout of the map
  float* const grid = picture + map.channel;
  float* const columns = grid + round_up(cells, LINE);
  for (int quad = 0; quad < quads_in(in); quad++) {
    const int32_t* from = quads_of(in.data) + static_cast<long>(quad) * map.channel;
    long sums[4];
    if (g.average) sum_pixels(map, from, in.zero, sums);
    for (int j = 0; j < 4 && 4 * quad + j < in.kept.count; j++) {
      const int channel = in.kept.index[4 * quad + j];
      const auto standardised = [&](int at, float feature) {
        const float z = (feature - g.mean[at]) * g.scale[at];
        f(at, z < -10 ? -10 : z > 10 ? 10 : z);
      };
      if (g.average) standardised(channel, static_cast<float>(sums[j]) * share);
      if (!g.grid) continue;
      for (int i = map.origin; i < map.origin + map.height * map.stride; i += LANES)
        store(picture + i, (byte_of(load_bits(from + i), j) - static_cast<float>(in.zero)) * in.scale);
      coarse_grid(map, g.grid, picture, grid, columns);
      for (int k = 0; k < cells; k++) standardised(g.average * g.in_channels + channel * cells + k, grid[k]);
    }
  }
}

static void look_at_bytes(const Gate& g, const View& in, float* features, float* scratch) {
  std::memcpy(features, g.absent, g.features() * sizeof(float));
  for_byte_features(g, in, scratch, [&](int at, float z) { features[at] = z; });
}

static int decide_on_bytes(const Gate& g, const View& in, int* kept, float* scratch) {
  return decide_by(g, in.kept, kept, scratch, [&](float* own, auto f) { for_byte_features(g, in, own, f); });
}

}  // namespace VARIANT
}  // namespace prunegym
