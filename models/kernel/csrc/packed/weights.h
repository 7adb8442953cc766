// The weights of a convolution on bytes. For each image those of the kept inputs are gathered, so that the inner loops
// read them one after the other.
#pragma once
#include <cstring>

#include "quads.h"

namespace prunegym {
namespace VARIANT {

constexpr int STEP = 16;  // quads of inputs that one product of tiles (tiles.h) reads

// What the inner loops read, for some output channels (rows).
struct Gathered {
  int quads;                // of kept inputs, for each tap
  int length;               // quads in a row, of all taps, up to whole steps; what is added has weights of zero
  int32_t* rows;            // (rows, length): [row][tap][input]
  float *factor, *summand;  // (rows): of a sum
  uint64_t* chosen;         // (inputs / 64): the bits of kept inputs

  COMMON const int32_t* row(int r) const { return rows + static_cast<long>(r) * length; }
};

INLINE int length_of(int taps, int inputs) { return round_up(taps * ((inputs + 3) / 4), STEP); }
INLINE int chosen_floats(int inputs) { return round_up((inputs + 63) / 64 * 2, LINE); }

// Floats of scratch for the gathered weights of some rows. The last store of a row reaches into the next.
INLINE long gathered_floats(int taps, int inputs, int rows) {
  return static_cast<long>(round_up(rows, STEP)) * (length_of(taps, inputs) + 2) + chosen_floats(inputs) + 2 * LINE;
}

// The bits of kept channels.
INLINE void choose(Kept kept, int channels, uint64_t* chosen) {
  std::memset(chosen, 0, chosen_floats(channels) * sizeof(float));
  for (int i = 0; i < kept.count; i++) chosen[kept.index[i] / 64] |= 1ull << (kept.index[i] % 64);
}

INLINE Gathered place_gathered(const Conv& c, const ConvCall& call, int rows, float* scratch) {
  const int padded = round_up(rows, STEP), inputs = call.in_kept.count;
  Gathered g{};
  g.quads = (inputs + 3) / 4, g.length = length_of(c.tap_count(), inputs);
  g.factor = scratch, g.summand = scratch + padded;
  g.chosen = reinterpret_cast<uint64_t*>(scratch + 2 * padded);
  g.rows = quads_of(scratch + 2 * padded + chosen_floats(c.in_channels));
#ifdef __AVX512VBMI2__
  choose(call.in_kept, c.in_channels, g.chosen);
#endif
  return g;
}

// Copies the weights of kept inputs under one tap, with zeros up to a whole quad, and if asked adds them to `total`. `to`
// may be written 64 bytes further.
template <bool TOTAL>
INLINE void gather_tap([[maybe_unused]] const Gathered& g, [[maybe_unused]] Kept kept, [[maybe_unused]] int inputs,
                       const int8_t* from, int8_t* to, Bits& total) {
#ifdef __AVX512VBMI2__
  for (int at = 0; at < inputs; at += 64) {
    const __m512i w = _mm512_maskz_compress_epi8(g.chosen[at / 64], _mm512_loadu_si512(from + at));
    _mm512_storeu_si512(to, w);
    if (TOTAL) total = (Bits)_mm512_dpbusd_epi32((__m512i)total, _mm512_set1_epi8(1), w);
    to += __builtin_popcountll(g.chosen[at / 64]);
  }
  std::memset(to, 0, 4);
#else
  for (int i = 0; i < kept.count; i++) total[0] += to[i] = from[kept.index[i]];
  std::memset(to + kept.count, 0, 4);
#endif
}

// Gathers rows `first`..`last` - 1 of the kept outputs; those after the last kept one are zeros.
template <bool SIGNS>
static void gather_rows(const Conv& c, const ConvCall& call, int first, int last, Gathered& g) {
  const Packed& p = c.packed;
  const int taps = c.tap_count(), used = taps * g.quads;
  for (int row = first; row < last; row++) {
    const int at = row - first;
    int8_t* to = reinterpret_cast<int8_t*>(g.rows + static_cast<long>(at) * g.length);
    if (row >= call.out_kept.count) {
      std::memset(to, 0, g.length * sizeof(int32_t));
      g.factor[at] = g.summand[at] = 0;
      continue;
    }
    const int o = call.out_kept.index[row];
    const int8_t* weight = p.weight + static_cast<long>(o) * taps * p.tap_bytes;
    Bits total{};
    for (int t = 0; t < taps; t++, weight += p.tap_bytes)
      gather_tap<SIGNS>(g, call.in_kept, c.in_channels, weight, to + 4L * t * g.quads, total);
    std::memset(to + 4L * used, 0, (g.length - used) * sizeof(int32_t));
    int32_t sum = 0;  // of all weights, which the input's zero point adds to the sums of products
    for (int lane = 0; SIGNS && lane < LANES; lane++) sum += total[lane];
    const float zeros = static_cast<float>(p.zero_in * sum) * p.factor[o];
    g.factor[at] = p.factor[o];
    g.summand[at] = call.bias[o] * p.inverse_unit - zeros + p.offset;
  }
}

static void gather(const Conv& c, const ConvCall& call, int first, int last, Gathered& g) {
  if (c.packed.zero_in) gather_rows<true>(c, call, first, last, g);
  else gather_rows<false>(c, call, first, last, g);
}

}  // namespace VARIANT
}  // namespace prunegym
