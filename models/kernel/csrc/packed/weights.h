// The weights of a convolution on packs. For each image those of the kept inputs are gathered, so that the inner loops read
// them one after the other. What they do with numbers is in bytes/quads.h and pairs/pairs.h.
#pragma once
#include "packs.h"

namespace prunegym {
namespace VARIANT {

constexpr int STEP = 16;  // packs of inputs that one product of tiles (tiles.h) reads

// What the inner loops read, for some output channels (rows).
struct Gathered {
  int packs;                // of kept inputs, for each tap
  int length;               // packs in a row, of all taps, up to whole steps; what is added has weights of zero
  int32_t* rows;            // (rows, length): [row][tap][input]
  float *factor, *summand;  // (rows): of a sum
  uint64_t* chosen;         // (inputs / 64): the bits of kept inputs

  COMMON const int32_t* row(int r) const { return rows + static_cast<long>(r) * length; }
};

INLINE int packs_for(int channels) { return (channels + PER - 1) / PER; }
INLINE int length_of(int taps, int inputs) { return round_up(taps * packs_for(inputs), STEP); }
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
  g.packs = packs_for(inputs), g.length = length_of(c.tap_count(), inputs);
  g.factor = scratch, g.summand = scratch + padded;
  g.chosen = reinterpret_cast<uint64_t*>(scratch + 2 * padded);
  g.rows = packs_of(scratch + 2 * padded + chosen_floats(c.in_channels));
#ifdef __AVX512VBMI2__
  choose(call.in_kept, c.in_channels, g.chosen);
#endif
  return g;
}

// Gathers rows `first`..`last` - 1 of the kept outputs; those after the last kept one are zeros.
template <bool TOTAL>
static void gather_rows(const Conv& c, const ConvCall& call, int first, int last, Gathered& g) {
  const Packed& p = c.packed;
  const int taps = c.tap_count(), used = taps * g.packs;
  for (int row = first; row < last; row++) {
    const int at = row - first;
    int32_t* to = g.rows + static_cast<long>(at) * g.length;
    if (row >= call.out_kept.count) {
      std::memset(to, 0, g.length * sizeof(int32_t));
      g.factor[at] = g.summand[at] = 0;
      continue;
    }
    const int o = call.out_kept.index[row];
    const int8_t* weight = p.weight + static_cast<long>(o) * taps * p.tap_bytes;
    Bits total{};
    for (int t = 0; t < taps; t++, weight += p.tap_bytes)
      gather_tap<TOTAL>(g.chosen, call.in_kept, c.in_channels, reinterpret_cast<const Weight*>(weight),
                        reinterpret_cast<Weight*>(to + static_cast<long>(t) * g.packs), total);
    std::memset(to + used, 0, (g.length - used) * sizeof(int32_t));
    ends_of<TOTAL>(c, o, call.bias[o], total, g.factor[at], g.summand[at]);
  }
}

static void gather(const Conv& c, const ConvCall& call, int first, int last, Gathered& g) {
  if (c.packed.zero_in) gather_rows<true>(c, call, first, last, g);
  else gather_rows<false>(c, call, first, last, g);
}

}  // namespace VARIANT
}  // namespace prunegym
