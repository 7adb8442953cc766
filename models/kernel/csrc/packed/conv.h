// Convolutions on bytes: for each image the weights of kept inputs are gathered, blocks of outputs and positions are
// summed in 32 bits, and sums become bytes again.
#pragma once
#include "../planes.h"
#include "amx.h"

namespace prunegym {
namespace VARIANT {

#if defined(PRUNEGYM_TILES)
constexpr bool TILES = true;
#else
constexpr bool TILES = false;
#endif

// ---- The plan of a layer.

// Few pixels: what all taps read fits in the second-level cache, so a block of rows is gathered and used for all pixels.
// Many: all rows are gathered, and each block of pixels is used for all of them.
constexpr long MANY_FLOATS = 64 << 10;

static void plan_conv(Conv& c, bool has_residual) {
  const int in_place = vectors_for(c.out.height * c.out.stride), copies = vectors_for(c.out.pixels());
  c.path = is_flat(c, has_residual) && 10 * in_place <= 11 * copies ? Path::in_place : Path::copies;
  if (c.path == Path::in_place) plan_in_place(c);
  else plan_copies(c, (c.in_channels + 3) / 4, BLOCK);
  const int length = length_of(c.tap_count(), c.in_channels);
  const long all = (c.vectors + 1) / 2 * static_cast<long>(BLOCK) * length;
  c.packed.by_rows = all <= MANY_FLOATS;
  c.packed.copies_size = round_up(c.planes_size, LINE);
  if (TILES && c.packed.by_rows) c.planes_size = c.packed.copies_size + all;
  const int rows = c.packed.by_rows ? BLOCK_ROWS : c.out_channels + 3;
  c.scratch_size = SUMS_FLOATS + static_cast<long>(BLOCK) * length + gathered_floats(c.tap_count(), c.in_channels, rows);
}

INLINE Pixels pixels_of(const Conv& c, const float* input, int inputs, int vector) {
  return Pixels{quads_of(input) + static_cast<long>(vector) * LANES, c.input_channel, c.taps, c.tap_count(), (inputs + 3) / 4};
}

// kept: inputs, of which only the number counts.
static const float* prepare_conv(const Conv& c, Kept kept, const float* map, float* planes) {
  const int quads = (kept.count + 3) / 4;
  for (int i = 0; c.path == Path::copies && i < quads; i++)
    copy_channel(c, map + static_cast<long>(i) * c.in.channel, planes + static_cast<long>(i) * c.input_channel);
  const float* input = c.path == Path::copies ? planes : map + c.in.origin;
#if defined(PRUNEGYM_TILES)
  if (c.packed.by_rows) {
    const int length = length_of(c.tap_count(), kept.count);
    float* panels = planes + c.packed.copies_size;
    for (int v = 0; v < c.vectors; v += 2)
      make_panel(pixels_of(c, input, kept.count, v), length, quads_of(panels + v / 2 * panel_floats(length)));
    return panels;
  }
#endif
  return input;
}

// ---- From sums to bytes.

// Four rows at one vector of positions: (sum * factor + summand + second) as a byte.
INLINE Bits finished(const Conv& c, const Gathered& g, int row, const int32_t* sums, bool second, Bits added) {
  const Packed& p = c.packed;
  Bits quads{};
  UNROLL for (int j = 0; j < 4; j++) {
    Vec v = __builtin_convertvector(load_bits(sums + j * BLOCK) - g.zeros[row + j], Vec);
    v = v * g.factor[row + j];
    v = v + g.summand[row + j];
    if (second) v = v + (byte_of(added, j) - static_cast<float>(p.zero_second)) * p.scale_second;
    if (is_long(c.activation)) v = activated(c.activation, v * p.unit) * p.inverse_unit;
    else v = clamp(v, p.low, p.high);
    quads |= to_byte(v + static_cast<float>(p.zero_out)) << (8 * j);
  }
  return quads;
}

// Calls f(done, y, x, count) for the parts of a picture's rows that make up the positions first..first + count - 1.
template <typename F>
INLINE void for_rows(int first, int count, int width, F f) {
  int y = first / width, x = first % width;
  for (int done = 0; done < count; y++, x = 0) {
    const int part = smaller(width - x, count - done);
    f(done, y, x, part);
    done += part;
  }
}

INLINE const int32_t* pixel(const Map& map, const float* data, long quad, int y, int x) {
  return quads_of(data) + quad * map.channel + map.first() + static_cast<long>(y) * map.stride + x;
}

// Writes rows `row`.. of the kept outputs at one or two vectors of positions. at: the first of the rows in g.
static void finish(const Conv& c, const ConvCall& call, const Gathered& g, int at, int row, int rows, int vector,
                   const int32_t* sums) {
  const int vectors = smaller(2, c.vectors - vector), position = vector * LANES;
  const Bits fill = broadcast_bits(c.packed.zero_out * 0x01010101);
  const bool second = call.residual != nullptr;
  for (int r = 0; r < rows; r += 4) {
    const long quad = (row + r) / 4;
    int32_t* out = quads_of(call.output) + quad * c.out.channel;
    if (c.path == Path::in_place) {
      for (int v = 0; v < vectors; v++) {
        const int to = position + v * LANES;
        const Bits added = second ? load_bits(quads_of(call.residual) + quad * c.residual.channel + c.residual.origin + to) : Bits{};
        const Bits bytes = finished(c, g, at + r, sums + r * BLOCK + v * LANES, second, added);
        store_bits(out + c.out.origin + to, bits_or(bytes, load_bits(c.valid + to), fill));
      }
      continue;
    }
    int32_t made[BLOCK], added[BLOCK] = {};
    const int count = smaller(vectors * LANES, c.out.pixels() - position);
    if (second)
      for_rows(position, count, c.out.width, [&](int done, int y, int x, int part) {
        std::memcpy(added + done, pixel(c.residual, call.residual, quad, y, x), part * sizeof(int32_t));
      });
    for (int v = 0; v < vectors; v++)
      store_bits(made + v * LANES, finished(c, g, at + r, sums + r * BLOCK + v * LANES, second, load_bits(added + v * LANES)));
    for_rows(position, count, c.out.width, [&](int done, int y, int x, int part) {
      std::memcpy(out + c.out.first() + static_cast<long>(y) * c.out.stride + x, made + done, part * sizeof(int32_t));
    });
  }
}

// ---- Computing.

// first, last of the call: quads of kept outputs.
static void conv(const Conv& c, const ConvCall& call) {
  const int first = 4 * call.first, last = 4 * call.last;
  if (first >= last) return;
  const int at_once = c.packed.by_rows ? smaller(BLOCK_ROWS, last - first) : last - first;
  int32_t* const sums = quads_of(call.scratch);
  float* scratch = call.scratch + SUMS_FLOATS;
#if defined(PRUNEGYM_TILES)
  int32_t* const own_panel = quads_of(scratch);
  scratch += panel_floats(length_of(c.tap_count(), c.in_channels));
  begin_tiles(at_once);
#endif
  Gathered g = place_gathered(c, call, at_once, scratch);
  for (int begin = first; begin < last; begin += at_once) {
    const int end = smaller(last, begin + at_once);
    gather(c, call, begin, end, g);
    for (int v = 0; v < c.vectors; v += 2) {
#if defined(PRUNEGYM_TILES)
      const int32_t* panel = quads_of(call.input) + v / 2 * panel_floats(g.length);
      if (!c.packed.by_rows) {
        make_panel(pixels_of(c, call.input, call.in_kept.count, v), g.length, own_panel);
        panel = own_panel;
      }
#endif
      for (int row = begin; row < end; row += BLOCK_ROWS) {
        const int rows = smaller(BLOCK_ROWS, end - row);
#if defined(PRUNEGYM_TILES)
        sums_of_tiles(panel, g, row - begin, rows, sums);
#else
        sums_of_dots(pixels_of(c, call.input, call.in_kept.count, v), g, row - begin, rows, sums);
#endif
        finish(c, call, g, row - begin, row, rows, v, sums);
      }
    }
  }
#if defined(PRUNEGYM_TILES)
  end_tiles();
#endif
}

}  // namespace VARIANT
}  // namespace prunegym
