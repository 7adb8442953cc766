// Convolutions: choose the path of a layer, prepare its input, cut rows and grid into tiles, write the results.
#pragma once
#include "pairs.h"
#include "planes.h"
#include "winograd.h"

namespace prunegym {
namespace VARIANT {

// ---- The plan of a layer: everything that depends only on shapes.

// Copies cost a little for each input channel. Zero columns waste lanes in every multiplication. So copies are used
// where they save a tenth of the vectors (mostly maps up to 8x8), and where a flat grid is impossible.
static Path choose_path(const Conv& c, bool has_residual) {
  if (winograd_pays(c)) return Path::winograd;
  const int in_place = vectors_for(c.out.height * c.out.stride), copies = vectors_for(c.out.pixels());
  if (LANES >= 8 && c.height == 3 && c.width == 3 && c.stride == 1 && c.padding == 1 && c.padding_width == 1 &&
      c.dilation == 1 && c.out.height == 2 && c.out.width == 2)
    return Path::two_by_two;
  return is_flat(c, has_residual) && 10 * in_place <= 11 * copies ? Path::in_place : Path::copies;
}

static void plan_conv(Conv& c, bool has_residual) {
  c.path = choose_path(c, has_residual);
  if (c.path == Path::in_place) plan_in_place(c);
  if (c.path == Path::copies) {
    plan_copies(c, c.in_channels);
    c.scratch_size = static_cast<long>(MAX_ROWS) * c.vectors * LANES;
  }
  if (c.path == Path::two_by_two) c.input_channel = LANES, c.planes_size = static_cast<long>(c.in_channels) * LANES;
  if (c.path == Path::winograd) plan_winograd(c);
}

// ---- Preparing the input.

static const float* prepare_conv(const Conv& c, Kept kept, const float* map, float* planes) {
  if (c.path == Path::in_place) return map + c.in.origin;
  if (c.path == Path::winograd) return map;
  for (int i = 0; i < kept.count; i++) {
    const float* from = map + static_cast<long>(i) * c.in.channel;
    float* to = planes + static_cast<long>(i) * c.input_channel;
    if (c.path == Path::copies) {
      copy_channel(c, from, to);
      continue;
    }
    from += c.in.first();
    for (int lane = 0; lane < LANES; lane++) to[lane] = from[(lane / 2 % 2) * c.in.stride + lane % 2];
  }
  return planes;
}

// ---- Computing.

static const TileTable tiles9 = make_table<9>(), tiles_any = make_table<0>();

static void run_tiles(const Source& source, const Rows& rows, int row_count, int first, int last, const int32_t* valid) {
  const TileTable& table = source.tap_count == 9 ? tiles9 : source.tap_count == 1 ? tiles1 : tiles_any;
  const long shift = static_cast<long>(first) * LANES;
  table.at[row_count][last - first](source, source.data + shift, rows, shift, valid);
}

constexpr long CACHED_WEIGHTS = 50000;

static void conv_in_place(const Conv& c, const ConvCall& call, const Source& source, Tiling tiling) {
  // If all weights fit in the second-level cache, x is read once. Otherwise the weights are.
  const bool by_pixels =
      static_cast<long>(call.last - call.first) * source.kept.count * c.tap_count() < CACHED_WEIGHTS;
  auto block = [&](int first_row, int last_row, int first_vector, int last_vector) {
    Rows rows = make_rows(c, call, first_row, last_row, first_vector ? 0 : call.last);
    rows.prefetch_pixels = !by_pixels || first_row == call.first;
    for (int r = 0; r < last_row - first_row; r++) {
      rows.out[r] += c.out.origin;
      if (call.residual) rows.residual[r] += c.residual.origin;
    }
    run_tiles(source, rows, last_row - first_row, first_vector, last_vector, c.valid);
    if (!is_long(c.activation)) return;
    const long shift = static_cast<long>(first_vector) * LANES, size = static_cast<long>(last_vector - first_vector) * LANES;
    for (int r = 0; r < last_row - first_row; r++) activate(c.activation, rows.out[r] + shift, size, c.valid + shift);
  };
  if (by_pixels) {
    for_parts(0, c.vectors, tiling.vector_blocks, [&](int, int v0, int v1) {
      for_parts(call.first, call.last, tiling.row_blocks, [&](int, int r0, int r1) { block(r0, r1, v0, v1); });
    });
  } else {
    for_parts(call.first, call.last, tiling.row_blocks, [&](int, int r0, int r1) {
      for_parts(0, c.vectors, tiling.vector_blocks, [&](int, int v0, int v1) { block(r0, r1, v0, v1); });
    });
  }
}

// Writes a grid without zero columns into the output map. Rows are stored in whole vectors, which reach into the next
// row. The residual may be in the same memory as the output, so it is added first.
static void store_grid(const Conv& c, float* grid, const float* residual, float* out) {
  const int width = c.out.width;
  const Bounds bounds = bounds_of(c.activation);
  if (residual) {
    for (int y = 0; y < c.out.height; y++) {
      float* row = grid + y * width;
      const float* add = residual + c.residual.first() + static_cast<long>(y) * c.residual.stride;
      for (int x = 0; x < width; x += LANES)
        store(row + x, load(row + x) + keep(load(add + x), first_lanes(width - x)));
    }
  }
  if (is_long(c.activation)) activate(c.activation, grid, static_cast<long>(c.vectors) * LANES);
  for (int y = 0; y < c.out.height; y++) {
    const float* row = grid + y * width;
    store_row(out + c.out.first() + static_cast<long>(y) * c.out.stride, width,
              [&](int x) { return clamp(load(row + x), bounds); });
  }
}

static void conv_copies(const Conv& c, const ConvCall& call, const Source& source, Tiling tiling) {
  const long grid_size = static_cast<long>(c.vectors) * LANES;
  for_parts(call.first, call.last, tiling.row_blocks, [&](int, int r0, int r1) {
    const Rows target = make_rows(c, call, r0, r1, call.last);
    Rows rows = target;
    rows.residual[0] = nullptr;
    rows.bounds = bounds_of(NO_ACTIVATION);
    for (int r = 0; r < r1 - r0; r++) rows.out[r] = call.scratch + r * grid_size;
    for_parts(0, c.vectors, tiling.vector_blocks, [&](int k, int v0, int v1) {
      rows.prefetch = target.prefetch && k == 0;
      run_tiles(source, rows, r1 - r0, v0, v1, nullptr);
    });
    for (int r = 0; r < r1 - r0; r++)
      store_grid(c, rows.out[r], call.residual ? target.residual[r] : nullptr, target.out[r]);
  });
}

static void conv_group(const Conv& c, const ConvCall& call) {
  const int rows = call.last - call.first;
  if (rows <= 0) return;
  const Source source{call.input, c.input_channel, c.taps, c.tap_count(), call.in_kept};
  if (c.path == Path::two_by_two) return conv_two_by_two(c, call, source);
  const Tiling tiling = choose_tiling(rows, c.vectors);
  if (c.path == Path::in_place) conv_in_place(c, call, source, tiling);
  else conv_copies(c, call, source, tiling);
}

// Runs each group as a separate convolution. Kept channels are in the order of their numbers, so a group's are adjacent.
static void conv_groups(const Conv& c, const ConvCall& call) {
  const Kept in = call.in_kept, out = call.out_kept;
  for (int first = call.first, begin = 0; first < call.last;) {
    const int group = out.index[first] / c.group_outputs();
    const long first_input = static_cast<long>(group) * c.group_inputs();
    ConvCall own = call;
    own.first = first;
    while (first < call.last && out.index[first] / c.group_outputs() == group) first++;
    while (begin < in.count && in.index[begin] < first_input) begin++;
    int end = begin;
    while (end < in.count && in.index[end] < first_input + c.group_inputs()) end++;
    own.last = first;
    own.in_kept = Kept{end - begin, in.index + begin};
    own.input = call.input + begin * c.input_channel;
    own.skipped = first_input * c.tap_count();
    conv_group(c, own);
  }
}

static void conv(const Conv& c, const ConvCall& call) {
  if (c.path == Path::winograd) return conv_winograd(c, call);
  if (c.groups > 1) return conv_groups(c, call);
  conv_group(c, call);
}

}  // namespace VARIANT
}  // namespace prunegym
