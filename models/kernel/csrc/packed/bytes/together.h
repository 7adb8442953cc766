// Convolutions on bytes for several images at once, by products of tiles, on small maps. To gather each image's weights
// takes longer there than to multiply with all of them. So weights stay as they are, and all images use each of them while
// it is in the cache. Masked inputs are zeros, and masked outputs are dropped.
//
// Here the tiles' rows are positions, of one image after the other, and their bytes what is under each tap, (tap, input).
#pragma once
#include "pixels.h"

namespace prunegym {
namespace VARIANT {

#if defined(PRUNEGYM_TILES) && LANES == 16

constexpr int MOST_PIXELS = 64;                // of an output map
constexpr long CACHED_BYTES = 768 << 10;       // of positions, which stay in a second-level cache with some weights
constexpr int STEP_BYTES = 4 * STEP, OUTPUTS = 2 * TILE;
constexpr int TILE_BYTES = TILE * STEP_BYTES;

INLINE int framed(int side, int padding) { return side + 2 * padding; }
INLINE long row_bytes(const Conv& c) { return static_cast<long>(c.packed.steps) * STEP_BYTES; }
INLINE int in_bytes(const Conv& c) { return round_up(c.in_channels, 16); }
INLINE long picture_floats(const Conv& c) {  // one image with its frame, and what stores write after it
  const long pixels = static_cast<long>(framed(c.in.height, c.padding)) * framed(c.in.width, c.padding_width);
  return round_up(pixels * in_bytes(c) / 4 + 2 * LINE, LINE);
}

// Weights of such a layer are kept twice, since single images gather them.
static void plan_layer(Conv& c, bool has_residual) {
  plan_conv(c, has_residual);
  Packed& p = c.packed;
  if (p.zero_in || c.out.pixels() > MOST_PIXELS || c.groups > 1) return;
  p.steps = (c.tap_count() * in_bytes(c) + STEP_BYTES - 1) / STEP_BYTES;
  p.together_size = round_up(c.out.pixels(), TILE) * (row_bytes(c) + out_bytes(c)) / 4 + out_bytes(c) + 2 * LINE;
  const long size = picture_floats(c) + out_bytes(c) + 2 * OUTPUTS * OUTPUTS + chosen_floats(most_channels(c)) + line_floats(c);
  if (c.scratch_size < size) c.scratch_size = size;
}

// What is under each tap at each position of an image. picture: zeros, with the frame.
static void make_rows(const Conv& c, const ConvCall& call, uint64_t* chosen, int32_t* line, int8_t* picture, int8_t* rows) {
  const int bytes = in_bytes(c), width = framed(c.in.width, c.padding_width);
  choose(call.in_kept, c.in_channels, chosen);
  for_pixels(c.in, call.input, call.in_kept.count, line, pitch_of(c), [&](int y, int x, const int8_t* kept) {
    spread(chosen, c.in_channels, kept, picture + (static_cast<long>(y + c.padding) * width + x + c.padding_width) * bytes);
  });
  long taps[MAX_KERNEL * MAX_KERNEL];
  const int count = c.tap_count(), out_width = c.out.width, pixels = c.out.pixels();
  const long row = row_bytes(c);
  for (int t = 0; t < count; t++) taps[t] = (static_cast<long>(t / c.width) * width + t % c.width) * c.dilation * bytes;
  for (int i = 0; i < pixels; i++, rows += row) {
    const int8_t* from = picture + (static_cast<long>(i / out_width) * width + i % out_width) * c.stride * bytes;
    int8_t* to = rows;
    for (int t = 0; t < count; t++, to += bytes)
      for (int at = 0; at < bytes; at += 64)  // too much is written over by the next tap, or meets weights of zero
        store_bits(reinterpret_cast<int32_t*>(to + at), load_bits(reinterpret_cast<const int32_t*>(from + taps[t] + at)));
  }
}

// ---- Products.

#ifdef __AMX_INT8__

// Sums (positions, 32) of 16 or 32 positions.
template <bool LOWER>
static void multiply_rows(const int8_t* rows, long row, const int8_t* tiles, int steps, int32_t* sums) {
  _tile_zero(0);
  _tile_zero(1);
  if (LOWER) _tile_zero(2);
  if (LOWER) _tile_zero(3);
  written();
  for (int s = 0; s < steps; s++, rows += STEP_BYTES, tiles += 2 * TILE_BYTES) {
    _tile_loadd(4, rows, row);
    _tile_loadd(6, tiles, STEP_BYTES);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(7, tiles + TILE_BYTES, STEP_BYTES);
    _tile_dpbusd(1, 4, 7);
    if (LOWER) {
      _tile_loadd(5, rows + TILE * row, row);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
  }
  constexpr int stride = OUTPUTS * sizeof(int32_t);
  _tile_stored(0, sums, stride);
  _tile_stored(1, sums + TILE, stride);
  if (LOWER) _tile_stored(2, sums + TILE * OUTPUTS, stride);
  if (LOWER) _tile_stored(3, sums + TILE * OUTPUTS + TILE, stride);
}

#else

template <bool LOWER>
static void multiply_rows(const int8_t* rows, long row, const int8_t* tiles, int steps, int32_t* sums) {
  for (int r = 0; r < (LOWER ? 2 : 1) * TILE; r++)
    for (int o = 0; o < OUTPUTS; o++) {
      int32_t sum = 0;
      for (int k = 0; k < steps * STEP_BYTES; k++)
        sum += static_cast<uint8_t>(rows[r * row + k]) *
               tiles[(k / STEP_BYTES * 2 + o / TILE) * TILE_BYTES + k % STEP_BYTES / 4 * 64 + o % TILE * 4 + k % 4];
      sums[r * OUTPUTS + o] = sum;
    }
}

#endif

// ---- From sums to bytes of all channels.

// 16 bytes to 32 bits each, and back.
INLINE Bits widened(const uint8_t* from) {
#ifdef __AVX512F__
  return (Bits)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  Bits v;
  for (int i = 0; i < LANES; i++) v[i] = from[i];
  return v;
#endif
}
INLINE void store_narrow(uint8_t* to, Bits v) {
#ifdef __AVX512F__
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)v));
#else
  for (int i = 0; i < LANES; i++) to[i] = static_cast<uint8_t>(v[i]);
#endif
}

struct Done {
  int first, count, output;  // positions, and the first of 32 outputs
  const int32_t* sums;
};

// results: (positions, out_bytes); the residual before, if there is one.
template <bool SECOND, bool LONG>
static void write_rows(const Conv& c, const float* factor, const float* summands, const Done& done, int8_t* results) {
  const int bytes = out_bytes(c), pixels = c.out.pixels();
  int image = done.first / pixels, left = (image + 1) * pixels - done.first;
  for (int r = 0; r < done.count; r++) {
    if (!left--) image++, left = pixels - 1;
    uint8_t* to = reinterpret_cast<uint8_t*>(results + static_cast<long>(done.first + r) * bytes + done.output);
    for (int half = 0; half < 2; half++) {
      const long o = done.output + half * TILE;
      const Vec second = SECOND ? __builtin_convertvector(widened(to + half * TILE), Vec) : Vec{};
      const Vec v = scaled<SECOND, LONG>(c, load_bits(done.sums + r * OUTPUTS + half * TILE), load(factor + o),
                                         load(summands + static_cast<long>(image) * bytes + o), second);
      store_narrow(to + half * TILE, to_byte(v));
    }
  }
}

// Whether that takes less time than to gather the weights of each image. Times are in those of gathering 64 weights, as
// measured on a Xeon: 4 for a product of tiles, 0.1 for each output here and 0.4 where images are computed one by one.
static bool pays(const Conv& c, const ConvCall* calls, int count) {
  const auto tiles = [](long numbers) { return (numbers + TILE - 1) / TILE; };
  const long pixels = c.out.pixels(), taps = c.tap_count();
  double apart = 0;
  for (int i = 0; i < count; i++) {
    const long rows = calls[i].out_kept.count, quads = taps * ((calls[i].in_kept.count + 3) / 4);
    apart += rows * taps * ((c.in_channels + 63) / 64) + 4 * tiles(pixels) * tiles(rows) * tiles(quads) + 0.4 * pixels * rows;
  }
  return 4 * tiles(count * pixels) * tiles(c.out_channels) * c.packed.steps + 0.1 * count * pixels * c.out_channels < apart;
}

static bool together(const Conv& c, const ConvCall* calls, int count, float* planes) {
  if (!pays(c, calls, count)) return false;
  const Packed& p = c.packed;
  const int pixels = c.out.pixels(), bytes = out_bytes(c), padded = round_up(c.out_channels, OUTPUTS);
  const long row = row_bytes(c);
  float* own = calls->scratch;
  const auto take = [&](long floats) { return std::exchange(own, own + round_up(floats, LINE)); };
  int8_t* picture = reinterpret_cast<int8_t*>(take(picture_floats(c)));
  int32_t* sums[2] = {packs_of(take(OUTPUTS * OUTPUTS)), packs_of(take(OUTPUTS * OUTPUTS))};
  float* factor = take(bytes);
  uint64_t* chosen = reinterpret_cast<uint64_t*>(take(chosen_floats(most_channels(c))));
  int32_t* line = packs_of(take(line_floats(c)));
  std::memset(picture, 0, picture_floats(c) * sizeof(float));
  std::memset(factor, 0, bytes * sizeof(float));
  std::memcpy(factor, p.factor, c.out_channels * sizeof(float));

  const int at_once = smaller(count, larger(1, static_cast<int>(CACHED_BYTES / (pixels * row))));
  float* summands = planes;
  int8_t* results = reinterpret_cast<int8_t*>(summands + static_cast<long>(at_once) * bytes);
  int8_t* rows = results + static_cast<long>(round_up(at_once * pixels, TILE)) * bytes;
  const bool more = is_long(c.activation);
  const auto write = calls->residual ? (more ? write_rows<true, true> : write_rows<true, false>)
                                     : (more ? write_rows<false, true> : write_rows<false, false>);
  begin_tiles(TILE);
  for (int begin = 0; begin < count; begin += at_once) {
    const int images = smaller(at_once, count - begin), positions = images * pixels;
    for (int i = 0; i < images; i++) {
      const ConvCall& call = calls[begin + i];
      make_rows(c, call, chosen, line, picture, rows + static_cast<long>(i) * pixels * row);
      for (int o = 0; o < c.out_channels; o++)
        summands[static_cast<long>(i) * bytes + o] = call.bias[o] * p.inverse_unit + p.offset;
      if (!call.residual) continue;
      choose(call.out_kept, c.out_channels, chosen);
      for_pixels(c.residual, call.residual, call.out_kept.count, line, pitch_of(c), [&](int y, int x, const int8_t* kept) {
        spread(chosen, c.out_channels, kept, results + (static_cast<long>(i) * pixels + y * c.out.width + x) * bytes);
      });
    }
    Done pending{};
    for (int o = 0; o < padded; o += OUTPUTS) {
      const int8_t* tiles = p.tiles + static_cast<long>(o) / TILE * p.steps * TILE_BYTES;
      for (int first = 0; first < positions; first += 2 * TILE) {
        const Done next{first, smaller(2 * TILE, positions - first), o, sums[0]};
        const auto run = next.count > TILE ? multiply_rows<true> : multiply_rows<false>;
        run(rows + first * row, row, tiles, p.steps, sums[0]);
        if (pending.count) write(c, factor, summands, pending, results);
        pending = next;
        std::swap(sums[0], sums[1]);
      }
    }
    write(c, factor, summands, pending, results);
    for (int i = 0; i < images; i++) {
      const ConvCall& call = calls[begin + i];
      choose(call.out_kept, c.out_channels, chosen);
      store_pixels(c, call, chosen, results + static_cast<long>(i) * pixels * bytes, line);
    }
  }
  end_tiles();
  return true;
}

#else

constexpr void (*plan_layer)(Conv&, bool) = plan_conv;
constexpr bool (*together)(const Conv&, const ConvCall*, int, float*) = nullptr;

#endif

}  // namespace VARIANT
}  // namespace prunegym
