// Convolutions on packs: for each image the weights of kept inputs are gathered, blocks of outputs and positions are summed
// in 32 bits, and sums become packs again.
#pragma once
#include <utility>

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

// Few pixels: a block of rows is gathered and used for all pixels. Many: all rows are gathered, and each block of pixels is
// used for all of them.
static void plan_conv(Conv& c, bool has_residual) {
  const int in_place = vectors_for(c.out.height * c.out.stride), copies = vectors_for(c.out.pixels());
  c.path = is_flat(c, has_residual) && 10 * in_place <= 11 * copies ? Path::in_place : Path::copies;
  const int stored = packs_for(c.in_channels);
  c.packed.pitch = c.stride > 1 && 10 * phases_pitch(c) <= 11 * c.out.width ? phases_pitch(c) : c.out.width;
  if (c.path == Path::in_place) plan_in_place(c);
  else if (c.packed.pitch > c.out.width) plan_phases(c, stored, BLOCK);
  else plan_copies(c, stored, BLOCK);
  const int length = length_of(c.tap_count(), c.in_channels);
  const long all = (c.vectors + 1) / 2 * static_cast<long>(BLOCK) * length;
  c.packed.by_rows = all <= static_cast<long>(c.out_channels) * length;
  c.packed.copies_size = round_up(c.planes_size, LINE);
  if (TILES && c.packed.by_rows) c.planes_size = c.packed.copies_size + all;
  const int rows = c.packed.by_rows ? BLOCK_ROWS : c.out_channels + 3;
  c.scratch_size = 2 * SUMS_FLOATS + 2L * BLOCK * length + gathered_floats(c.tap_count(), c.in_channels, rows);
}

INLINE Pixels pixels_of(const Conv& c, const float* input, int inputs, int vector) {
  return Pixels{packs_of(input) + static_cast<long>(vector) * LANES, c.input_channel, c.taps, c.tap_count(), packs_for(inputs)};
}

// kept: inputs, of which only the number counts.
static const float* prepare_conv(const Conv& c, Kept kept, const float* map, float* planes) {
  const int packs = packs_for(kept.count);
  const auto copy = c.packed.pitch > c.out.width ? copy_phases : copy_channel;
  for (int i = 0; c.path == Path::copies && i < packs; i++)
    copy(c, map + static_cast<long>(i) * c.in.channel, planes + static_cast<long>(i) * c.input_channel);
  const float* input = c.path == Path::copies ? planes : map + c.in.origin;
#if defined(PRUNEGYM_TILES)
  if (c.packed.by_rows) {
    const int length = length_of(c.tap_count(), kept.count);
    float* panels = planes + c.packed.copies_size;
    for (int v = 0; v < c.vectors; v += 2)
      make_panel(pixels_of(c, input, kept.count, v), length, packs_of(panels + v / 2 * panel_floats(length)));
    return panels;
  }
#endif
  return input;
}

// ---- From sums to packs.

// The rows of a pack at one vector of positions.
template <bool SECOND, bool LONG>
INLINE Bits finished(const Conv& c, const Gathered& g, int row, const int32_t* sums, Bits added) {
  Vec v[PER];
  UNROLL for (int j = 0; j < PER; j++) {
    const Vec second = SECOND ? number_of(added, j) : Vec{};
    v[j] = scaled<SECOND, LONG>(c, load_bits(sums + j * BLOCK), g.factor[row + j], g.summand[row + j], second);
  }
  return packed(v);
}

// Pixels of one row of the picture, in a block: the first among the block's positions, its place in maps, and how many.
struct Part {
  int done, count;
  long out, residual;
};

// The parts of a block, of one vector at most: of the positions first..first + count - 1 of a grid with rows of `pitch`.
// Returns how many.
INLINE int find_parts(const Conv& c, int first, int count, Part* parts) {
  const int width = c.out.width, height = c.out.height, pitch = c.packed.pitch;
  int y = first / pitch, x = first % pitch, found = 0;
  for (int done = 0; done < count && y < height; done += pitch - x, y++, x = 0)
    for (int part = 0; part < smaller(width - x, count - done); part += LANES) {
      const long residual = c.residual.first() + static_cast<long>(y) * c.residual.stride + x + part;
      parts[found++] = Part{done + part, smaller(LANES, smaller(width - x, count - done) - part),
                            c.out.first() + static_cast<long>(y) * c.out.stride + x + part, residual};
    }
  return found;
}

// The first n numbers of a vector, and no others.
INLINE void store_some(int32_t* to, Bits v, int n) {
#ifdef __AVX512F__
  _mm512_mask_storeu_epi32(to, static_cast<__mmask16>((1u << n) - 1), (__m512i)v);
#else
  std::memcpy(to, &v, n * sizeof(int32_t));
#endif
}

// Sums of a block that are not yet packs. The next block's are computed first, since tiles take long to arrive.
struct Pending {
  int row, rows, at;  // rows of the kept outputs, and where the first is among the gathered
  int vector;         // the first of one or two
  const int32_t* sums;
};

// Writes a block.
template <bool SECOND, bool LONG>
static void write(const Conv& c, const ConvCall& call, const Gathered& g, const Pending& block) {
  const auto [row, all, at, vector, sums] = block;
  const int rows = smaller(all, PER * packs_for(call.out_kept.count) - row);
  const int vectors = smaller(2, c.vectors - vector), position = vector * LANES;
  const Bits fill = broadcast_bits(frame_of(c.packed.zero_out));
  Part parts[BLOCK];
  const int part_count = c.path == Path::in_place ? 0 : find_parts(c, position, vectors * LANES, parts);
  for (int r = 0; r < rows; r += PER) {
    const long pack = (row + r) / PER;
    int32_t* out = packs_of(call.output) + pack * c.out.channel;
    if (c.path == Path::in_place) {
      for (int v = 0; v < vectors; v++) {
        const int to = position + v * LANES;
        const Bits added = SECOND ? load_bits(packs_of(call.residual) + pack * c.residual.channel + c.residual.origin + to) : Bits{};
        const Bits made = finished<SECOND, LONG>(c, g, at + r, sums + r * BLOCK + v * LANES, added);
        store_bits(out + c.out.origin + to, bits_or(made, load_bits(c.valid + to), fill));
      }
      continue;
    }
    int32_t made[BLOCK + LANES], added[BLOCK] = {};
    const int32_t* residual = SECOND ? packs_of(call.residual) + pack * c.residual.channel : nullptr;
    for (int i = 0; SECOND && i < part_count; i++)
      store_some(added + parts[i].done, load_bits(residual + parts[i].residual), parts[i].count);
    for (int v = 0; v < vectors; v++)
      store_bits(made + v * LANES, finished<SECOND, LONG>(c, g, at + r, sums + r * BLOCK + v * LANES, load_bits(added + v * LANES)));
    for (int i = 0; i < part_count; i++) store_some(out + parts[i].out, load_bits(made + parts[i].done), parts[i].count);
  }
}

static void finish(const Conv& c, const ConvCall& call, const Gathered& g, const Pending& block) {
  const bool more = is_long(c.activation);
  const auto run = call.residual ? (more ? write<true, true> : write<true, false>) : (more ? write<false, true> : write<false, false>);
  run(c, call, g, block);
}

// ---- Computing.

// first, last of the call: fours of kept outputs.
static void conv(const Conv& c, const ConvCall& call) {
  const int first = 4 * call.first, last = 4 * call.last;
  if (first >= last) return;
  const int at_once = c.packed.by_rows ? smaller(BLOCK_ROWS, last - first) : last - first;
  int32_t* sums[2] = {packs_of(call.scratch), packs_of(call.scratch) + SUMS_FLOATS};
  float* scratch = call.scratch + 2 * SUMS_FLOATS;
#if defined(PRUNEGYM_TILES)
  const long panel_size = panel_floats(length_of(c.tap_count(), c.in_channels));
  int32_t* panels[2] = {packs_of(scratch), packs_of(scratch) + panel_size};
  scratch += 2 * panel_size;
  begin_tiles(at_once);
#endif
  Gathered g = place_gathered(c, call, at_once, scratch);
  for (int begin = first; begin < last; begin += at_once) {
    const int end = smaller(last, begin + at_once);
    gather(c, call, begin, end, g);
    Pending pending{};
    const auto pixels = [&](int v) { return pixels_of(c, call.input, call.in_kept.count, v); };
#if defined(PRUNEGYM_TILES)
    if (!c.packed.by_rows) make_panel(pixels(0), g.length, panels[0]);
#endif
    for (int v = 0; v < c.vectors; v += 2) {
#if defined(PRUNEGYM_TILES)
      // A panel is made one block ahead: numbers that were just stored can't be loaded as a tile at once.
      if (!c.packed.by_rows && v + 2 < c.vectors) make_panel(pixels(v + 2), g.length, panels[1]);
      const int32_t* panel = c.packed.by_rows ? packs_of(call.input) + v / 2 * panel_floats(g.length) : panels[0];
      std::swap(panels[0], panels[1]);
#endif
      for (int row = begin; row < end; row += BLOCK_ROWS) {
        const Pending next{row, smaller(BLOCK_ROWS, end - row), row - begin, v, sums[0]};
#if defined(PRUNEGYM_TILES)
        sums_of_tiles(panel, g, next.at, next.rows, c.vectors - v > 1, sums[0]);
#else
        sums_of_dots(pixels(v), g, next.at, next.rows, sums[0]);
#endif
        if (pending.rows) finish(c, call, g, pending);
        pending = next;
        std::swap(sums[0], sums[1]);
      }
    }
    finish(c, call, g, pending);
  }
#if defined(PRUNEGYM_TILES)
  end_tiles();
#endif
}

}  // namespace VARIANT
}  // namespace prunegym
