// Maps of quads from and to pixels: for each pixel the bytes of all channels, one after the other, with zeros for masked
// ones. together.h computes with these.
#pragma once
#include "../conv.h"

namespace prunegym {
namespace VARIANT {

#if defined(PRUNEGYM_TILES) && LANES == 16

INLINE int out_bytes(const Conv& c) { return round_up(c.out_channels, 64); }
INLINE int most_channels(const Conv& c) { return larger(c.in_channels, c.out_channels); }
// Quads from one pixel to the next, in a row of pixels that is on its way from or to a map.
INLINE int pitch_of(const Conv& c) { return round_up(most_channels(c), 64) / 4 + LINE; }
INLINE long line_floats(const Conv& c) { return static_cast<long>(larger(c.in.width, c.out.width)) * pitch_of(c); }

// Kept bytes to their places among all channels, with zeros between. Up to 63 more zeros are written.
INLINE void spread(const uint64_t* chosen, int channels, const int8_t* from, int8_t* to) {
#ifdef __AVX512VBMI2__
  for (int at = 0; at < channels; at += 64) {
    _mm512_storeu_si512(to + at, _mm512_maskz_expand_epi8(chosen[at / 64], _mm512_loadu_si512(from)));
    from += __builtin_popcountll(chosen[at / 64]);
  }
#else
  for (int at = 0; at < round_up(channels, 64); at++) to[at] = chosen[at / 64] >> (at % 64) & 1 ? *from++ : 0;
#endif
}

// The reverse. Up to 63 more bytes are written.
INLINE void pick(const uint64_t* chosen, int channels, const int8_t* from, int8_t* to) {
#ifdef __AVX512VBMI2__
  for (int at = 0; at < channels; at += 64) {
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi8(chosen[at / 64], _mm512_loadu_si512(from + at)));
    to += __builtin_popcountll(chosen[at / 64]);
  }
#else
  for (int at = 0; at < channels; at++)
    if (chosen[at / 64] >> (at % 64) & 1) *to++ = from[at];
#endif
}

// Rows become columns.
INLINE void transpose(Bits (&v)[TILE]) {
  UNROLL for (int round = 0; round < 4; round++) {
    Bits w[TILE];
    UNROLL for (int i = 0; i < TILE / 2; i++) {
      w[2 * i] = (Bits)interleave_low((Vec)v[i], (Vec)v[i + TILE / 2]);
      w[2 * i + 1] = (Bits)interleave_high((Vec)v[i], (Vec)v[i + TILE / 2]);
    }
    UNROLL for (int i = 0; i < TILE; i++) v[i] = w[i];
  }
}

// A block of 16 x 16 quads from rows to columns; rows and columns that do not count are not read, or not stored.
template <typename Store>
INLINE void transposed(const int32_t* from, long distance, int rows, int columns, Store store_at) {
  Bits v[TILE];
  UNROLL for (int i = 0; i < TILE; i++) v[i] = i < rows ? load_bits(from + i * distance) : Bits{};
  transpose(v);
  UNROLL for (int i = 0; i < TILE; i++)
    if (i < columns) store_at(i, v[i]);
}

// Calls f(y, x, kept bytes) for all pixels of a map. line: memory for a row of pixels.
template <typename F>
INLINE void for_pixels(const Map& map, const float* data, int kept, int32_t* line, int pitch, F f) {
  const int width = map.width, height = map.height, quads = (kept + 3) / 4;
  const long channel = map.channel;
  for (int y = 0; y < height; y++) {
    const int32_t* row = packs_of(data) + map.first() + static_cast<long>(y) * map.stride;
    for (int quad = 0; quad < quads; quad += TILE)
      for (int x = 0; x < width; x += TILE)
        transposed(row + quad * channel + x, channel, quads - quad, width - x,
                   [&](int i, Bits v) { store_bits(line + static_cast<long>(x + i) * pitch + quad, v); });
    for (int x = 0; x < width; x++) f(y, x, reinterpret_cast<const int8_t*>(line + static_cast<long>(x) * pitch));
  }
}

// Writes the kept bytes of all pixels. results: (pixels, out_bytes).
INLINE void store_pixels(const Conv& c, const ConvCall& call, const uint64_t* chosen, const int8_t* results, int32_t* line) {
  const int pitch = pitch_of(c), width = c.out.width, height = c.out.height, quads = (call.out_kept.count + 3) / 4;
  const int channels = c.out_channels, bytes = out_bytes(c);
  const long channel = c.out.channel;
  const Bits fill = broadcast_bits(c.packed.zero_out * 0x01010101);
  for (int y = 0; y < height; y++) {
    for (int x = 0; x < width; x++, results += bytes)
      pick(chosen, channels, results, reinterpret_cast<int8_t*>(line + static_cast<long>(x) * pitch));
    int32_t* row = packs_of(call.output) + c.out.first() + static_cast<long>(y) * c.out.stride;
    for (int quad = 0; quad < quads; quad += TILE)
      for (int x = 0; x < width; x += TILE)
        transposed(line + static_cast<long>(x) * pitch + quad, pitch, width - x, quads - quad,
                   [&](int i, Bits v) { store_bits(row + (quad + i) * channel + x, bits_or(v, first_lanes(width - x), fill)); });
  }
}

#endif

}  // namespace VARIANT
}  // namespace prunegym
