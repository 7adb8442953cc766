// Layers that read channels one by one, and the linear layer.
#pragma once
#include "depthwise.h"
#include "features.h"

namespace prunegym {
namespace VARIANT {

// out = a + b (or a alone), and an activation. out may be a or b where its row stride is the same.
static void add(const LayerRecord& r, const View& a, const View& b, const View& out, float*) {
  for (int c = 0; c < a.kept.count; c++) {
    for (int y = 0; y < out.map->height; y++) {
      const float *row = a.row(c, y), *other = b.data ? b.row(c, y) : nullptr;
      float* to = out.row(c, y);
      for (int x = 0; x < out.map->width; x++) {
        const float v = other ? row[x] + other[x] : row[x];
        to[x] = r.activation == RELU && v < 0 ? 0 : v;
      }
      if (r.activation > RELU) activate(r.activation, to, out.map->width);
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

// Copies a map's channels into a larger map (concatenation). If there are factors and summands (a norm), each channel is
// multiplied and added to. An activation follows. The output's kept channels before `offset` are already there.
static void place(const LayerRecord& r, const View& in, const View&, const View& out, float*) {
  int first = 0;
  while (first < out.kept.count && out.kept.index[first] < r.offset) first++;
  const Bounds bounds = bounds_of(r.activation);
  const int width = out.map->width;
  for (int c = 0; c < in.kept.count; c++) {
    const int channel = r.offset + in.kept.index[c];
    const Vec factor = broadcast(r.weight ? r.weight[channel] : 1), summand = broadcast(r.weight ? r.bias[channel] : 0);
    if (in.map->is_vector()) {
      float v = in.data[c] * factor[0] + summand[0];
      activate(r.activation, &v, 1);
      out.data[first + c] = v;
      continue;
    }
    for (int y = 0; y < out.map->height; y++) {
      const float* from = in.row(c, y);
      float* to = out.row(first + c, y);
      store_row(to, width, [&](int x) { return clamp(load(from + x) * factor + summand, bounds); });
    }
    if (is_long(r.activation))
      for (int y = 0; y < out.map->height; y++) activate(r.activation, out.row(first + c, y), width);
  }
}

// A map times a factor for each channel. Zeros of the frame stay zeros, so all rows are one loop, unless the factor is
// infinite or NaN: then the frame would be wrong for all images after this one.
static void scale(const LayerRecord&, const View& in, const View& factors, const View& out, float*) {
  const Map& map = *in.map;
  const long length = map.is_vector() ? 1 : round_up(map.height * map.stride, LANES);
  for (int c = 0; c < in.kept.count; c++) {
    if (map.is_vector()) {
      out.data[c] = in.data[c] * factors.data[c];
      continue;
    }
    const Vec factor = broadcast(factors.data[c]);
    const float* from = in.data + static_cast<long>(c) * map.channel + map.origin;
    float* to = out.data + static_cast<long>(c) * map.channel + map.origin;
    const bool finite = factor[0] - factor[0] == 0;
    for (long x = 0; finite && x < length; x += LANES) store(to + x, load(from + x) * factor);
    for (int y = 0; !finite && y < map.height; y++)
      for (int x = 0; x < map.width; x++) out.row(c, y)[x] = in.row(c, y)[x] * factor[0];
  }
}

// All channels: kept ones at their places, zeros elsewhere.
static void expand(const LayerRecord&, const View& in, const View&, const View& out, float*) {
  const int width = out.map->width;
  for (int c = 0, next = 0; c < out.channels; c++) {
    const bool there = next < in.kept.count && in.kept.index[next] == c;
    for (int y = 0; y < out.map->height; y++) {
      const float* from = there ? (in.map->is_vector() ? in.data + next : in.row(next, y)) : nullptr;
      if (in.map->is_vector()) out.data[c] = there ? *from : 0;
      else store_row(out.row(c, y), width, [&](int x) { return there ? load(from + x) : Vec{}; });
    }
    next += there;
  }
}

// Biases of a layer: its own, plus the summands of each masked channel that it reads. Zeros follow the vector, up to whole
// lines.
static void compensate(const LayerRecord& r, const View& masked, const View&, const View& out, float*) {
  const long padded = round_up(out.channels, LINE);
  const Kept rows = masked.kept;
  __builtin_memcpy(out.data, r.bias, padded * sizeof(float));
  const auto row = [&](int i) { return r.weight + rows.index[i] * padded; };
  int i = 0;
  for (; i + 4 <= rows.count; i += 4) {  // four rows for each time that the sums are read
    const float *a = row(i), *b = row(i + 1), *c = row(i + 2), *d = row(i + 3);
    for (long o = 0; o < padded; o += LANES)
      store(out.data + o, load(out.data + o) + ((load(a + o) + load(b + o)) + (load(c + o) + load(d + o))));
  }
  for (; i < rows.count; i++)
    for (long o = 0; o < padded; o += LANES) store(out.data + o, load(out.data + o) + load(row(i) + o));
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

// On a vector, with every output needed: weights are (in, out), so that those of a kept input are adjacent. Outputs are
// followed by zeros up to whole lines.
static void linear_by_columns(const LayerRecord& r, const View& in, const float* bias, const View& out) {
  const int padded = round_up(out.channels, LINE);
  __builtin_memcpy(out.data, bias, padded * sizeof(float));
  for (int i = 0; i < in.kept.count; i += 4) {  // four rows each time that the sums are read
    Vec x[4];
    const float* weight[4];
    for (int k = 0; k < 4; k++) {
      const int at = smaller(i + k, in.kept.count - 1);
      x[k] = broadcast(i + k < in.kept.count ? in.data[at] : 0);
      weight[k] = r.weight + static_cast<long>(in.kept.index[at]) * padded;
    }
    for (int o = 0; o < padded; o += LANES)
      store(out.data + o, load(out.data + o) + (x[0] * load(weight[0] + o) + x[1] * load(weight[1] + o)) +
                              (x[2] * load(weight[2] + o) + x[3] * load(weight[3] + o)));
  }
  activate(r.activation, out.data, out.channels);
}

// With many pixels per channel: one dot product for each kept channel. With few: the kept features are put at their places
// among zeros, and one dot product covers all. Features are followed by zeros up to a whole vector.
static void linear(const LayerRecord& r, const View& in, const View& biases, const View& out, float* scratch) {
  const float* bias = biases.data ? biases.data : r.bias;
  if (r.hidden) return linear_by_columns(r, in, bias, out);
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
    float v = bias[out.kept.index[j]];
    if (!apart) v += dot(weight, scratch, all);
    for (int i = 0; apart && i < in.kept.count; i++)
      v += dot(weight + static_cast<long>(in.kept.index[i]) * pixels, scratch + static_cast<long>(i) * padded, pixels);
    out.data[j] = v;
  }
  activate(r.activation, out.data, out.kept.count);
}

}  // namespace VARIANT
}  // namespace prunegym
