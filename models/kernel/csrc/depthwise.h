// Depthwise convolutions: each kept channel separately. With stride 1 and a wide enough frame they run over the flat map.
// Otherwise the channel is first copied to `stride` x `stride` planes of every stride-th pixel, with zeros around them.
// There, too, a step of the kernel is a fixed distance.
#pragma once
#include "activation.h"
#include "sizes.h"

namespace prunegym {
namespace VARIANT {

// Computes `count` sums from `x` on, in whole vectors.
template <int TAPS>
static void depthwise_run(const float* x, const long* taps, int tap_count, const float* weight, float bias, Bounds bounds,
                          long count, float* to) {
  constexpr int BLOCK = TAPS ? (LANES == 16 ? 8 : 4) : 4;
  const int all = TAPS ? TAPS : tap_count;
  const auto sums_at = [&](long at, auto blocks) __attribute__((always_inline)) {
    constexpr int N = decltype(blocks)::value;
    Vec sums[N];
    UNROLL for (int v = 0; v < N; v++) sums[v] = broadcast(bias);
    const auto tap = [&](int t) __attribute__((always_inline)) {
      const Vec w = broadcast(weight[t]);
      const float* from = x + taps[t] + at;
      UNROLL for (int v = 0; v < N; v++) sums[v] += w * load(from + v * LANES);
    };
    if constexpr (TAPS > 0) {
      UNROLL for (int t = 0; t < TAPS; t++) tap(t);
    } else {
      for (int t = 0; t < all; t++) tap(t);
    }
    UNROLL for (int v = 0; v < N; v++) store(to + at + v * LANES, clamp(sums[v], bounds));
  };
  long at = 0;
  for (; at + BLOCK * LANES <= count; at += BLOCK * LANES) sums_at(at, std::integral_constant<int, BLOCK>{});
  for (; at < count; at += LANES) sums_at(at, std::integral_constant<int, 1>{});
}

// Columns first, first + step, ... of a row, zeros where there is no pixel. from: its pixel 0; null: there is no row.
static void plane_row(const float* from, int first, int step, int in_width, int width, float* to) {
  const int begin = smaller(width, first < 0 ? (step - 1 - first) / step : 0);
  const int end = larger(begin, !from || first >= in_width ? begin : smaller(width, (in_width - 1 - first) / step + 1));
  if (!from) {
    for (int x = 0; x < width; x++) to[x] = 0;
    return;
  }
  from += first;
  if (step == 1) {
    for (int x = begin; x < end; x += LANES) store(to + x, load(from + x));
  } else if (step == 2) {
    for (int x = begin; x < end; x += LANES) store(to + x, even_lanes(load(from + 2 * x), load(from + 2 * x + LANES)));
  } else {
    for (int x = begin; x < end; x++) to[x] = from[static_cast<long>(x) * step];
  }
  for (int x = 0; x < begin; x++) to[x] = 0;
  for (int x = end; x < width; x++) to[x] = 0;
}

static void fill_planes(const LayerRecord& r, const View& in, int channel, const DepthwisePlanes& p, float* planes) {
  const int down = (r.kernel - 1) * r.dilation, right = (r.kernel_width - 1) * r.dilation;
  for (int py = 0; py < p.stride && py <= down; py++) {
    for (int px = 0; px < p.stride && px <= right; px++, planes += p.plane) {
      for (int row = 0; row < p.rows; row++) {
        const long y = static_cast<long>(row) * p.stride + py - r.padding;
        const bool inside = y >= 0 && y < in.map->height;
        plane_row(inside ? in.row(channel, static_cast<int>(y)) : nullptr, px - r.padding_width, p.stride, in.map->width,
                  p.pitch, planes + static_cast<long>(row) * p.pitch);
      }
    }
  }
}

static void depthwise_sums(const LayerRecord& r, const float* x, const long* taps, int number, long count, float* to) {
  const int all = r.kernel * r.kernel_width;
  const auto run = all == 9 ? depthwise_run<9> : all == 25 ? depthwise_run<25> : depthwise_run<0>;
  run(x, taps, all, r.weight + static_cast<long>(number) * all, r.bias[number], bounds_of(r.activation), count, to);
  if (is_long(r.activation)) activate(r.activation, to, count);
}

// Runs over the flat map with its zero columns. These, and the numbers after the last row, are then set to zero again.
static void depthwise_in_place(const LayerRecord& r, const View& in, const View& out) {
  const Map &from = *in.map, &map = *out.map;
  long taps[MAX_KERNEL * MAX_KERNEL];
  for (int t = 0; t < r.kernel * r.kernel_width; t++)
    taps[t] = static_cast<long>(t / r.kernel_width - r.padding) * from.stride + t % r.kernel_width - r.padding_width;
  const long count = static_cast<long>(map.height) * map.stride;
  for (int c = 0; c < in.kept.count; c++) {
    float* to = out.data + static_cast<long>(c) * map.channel + map.origin;
    depthwise_sums(r, in.data + static_cast<long>(c) * from.channel + from.origin, taps, in.kept.index[c], count, to);
    for (int y = 0; y < map.height; y++)
      for (int x = map.width + 1; x <= map.stride; x++) to[static_cast<long>(y) * map.stride + x] = 0;
    to[0] = 0;
    for (long x = count; x < round_up(count, static_cast<int>(LANES)); x++) to[x] = 0;
  }
}

static void depthwise(const LayerRecord& r, const View& in, const View&, const View& out, float* scratch) {
  if (r.stride == 1 && r.dilation == 1 && r.kernel <= 3 && r.kernel_width <= 3 && r.padding <= (r.kernel - 1) / 2 &&
      r.padding_width <= (r.kernel_width - 1) / 2 && in.map->stride == out.map->stride)
    return depthwise_in_place(r, in, out);
  const DepthwisePlanes p = depthwise_planes(r, *out.map);
  float* made = scratch + p.plane * p.count;
  const int right = (r.kernel_width - 1) * r.dilation, wide = p.stride <= right ? p.stride : right + 1;
  long taps[MAX_KERNEL * MAX_KERNEL];
  for (int t = 0; t < r.kernel * r.kernel_width; t++) {
    const int dy = t / r.kernel_width * r.dilation, dx = t % r.kernel_width * r.dilation;
    taps[t] = (dy % p.stride * wide + dx % p.stride) * p.plane + static_cast<long>(dy / p.stride) * p.pitch + dx / p.stride;
  }
  for (int c = 0; c < in.kept.count; c++) {
    fill_planes(r, in, c, p, scratch);
    depthwise_sums(r, scratch, taps, in.kept.index[c], p.positions(*out.map), made);
    for (int y = 0; y < out.map->height; y++) {
      const float* row = made + static_cast<long>(y) * p.pitch;
      store_row(out.row(c, y), out.map->width, [&](int x) { return load(row + x); });
    }
  }
}

}  // namespace VARIANT
}  // namespace prunegym
