// The scratch memory of depthwise convolutions and poolings, as the plan and the layer functions use it.
#pragma once
#include "common.h"

namespace prunegym {

constexpr int DEPTHWISE_BLOCK = 8;  // vectors that are computed together

// The planes of one channel, row by row.
struct DepthwisePlanes {
  int stride;       // planes in each direction
  int rows, pitch;  // of a plane
  long plane, count;

  COMMON long positions(const Map& out) const { return static_cast<long>(out.height) * pitch; }
};

COMMON DepthwisePlanes depthwise_planes(const LayerRecord& r, const Map& out) {
  const int down = (r.kernel - 1) * r.dilation, right = (r.kernel_width - 1) * r.dilation;
  DepthwisePlanes p{r.stride, out.height + down / r.stride, out.width + right / r.stride, 0, 0};
  p.plane = round_up(static_cast<long>(p.rows) * p.pitch, LINE) + (DEPTHWISE_BLOCK + 1) * LINE;
  // Planes that no tap reads are left out.
  const int high = r.stride <= down ? r.stride : down + 1, wide = r.stride <= right ? r.stride : right + 1;
  p.count = static_cast<long>(high) * wide;
  return p;
}

// Floats that a depthwise convolution needs: the planes and one output channel.
COMMON long depthwise_scratch(const LayerRecord& r, const Map& out) {
  const DepthwisePlanes p = depthwise_planes(r, out);
  return p.plane * p.count + round_up(p.positions(out), LINE) + (DEPTHWISE_BLOCK + 1) * LINE;
}

// Floats that a pooling needs: one row of its input with the padding, and what vectors write and read beyond it.
COMMON long pool_scratch(const LayerRecord& r, const Map& in, const Map& out) {
  const long rows = in.width + 2L * r.padding, windows = static_cast<long>(out.width + LINE) * r.stride + r.kernel;
  return (rows < windows ? windows : rows) + 2 * LINE;
}

}  // namespace prunegym
