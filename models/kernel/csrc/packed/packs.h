// Maps of bytes or of bfloat16. Some channels of a pixel are one number of 32 bits, a pack: four bytes (bytes/quads.h), or
// two numbers of bfloat16 (pairs/pairs.h). So a map of C kept channels lies in memory as C / PER channels of floats would,
// rounded up: all of Map's distances hold, and copies of floats copy packs. Numbers of a last pack that belong to no channel
// have any value (in pairs, any that is finite); their weights are zero.
//
// What differs between the two is in those files, which are included before all others:
//
//     PER               channels in a pack
//     MAY_BE_NAN        whether a pack may have NaN
//     Weight            the type of a weight
//     frame_of(zero)    a pack of zeros
//     number_of(p, j)   number j of each pack, as it is stored
//     unit_of(view)     what a map's numbers mean
//     stored(v, unit)   floats as they are stored, and meant(v, unit) the reverse
//     packed(v)         PER vectors of numbers, rounded, as packs
//     larger_numbers    of each two
//     least(relu, zero) the smallest number, to begin a maximum with
//     add_pixels        sums over the pixels of a pack's channels, and add_columns over some rows
//     dot               sums plus products of packs
//     gather_tap        weights of kept inputs
//     summand_of        what is added to the sums of a row
//     scaled            sums as numbers of the output
#pragma once
#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "../activation.h"

namespace prunegym {
namespace VARIANT {

INLINE const int32_t* packs_of(const float* data) { return reinterpret_cast<const int32_t*>(data); }
INLINE int32_t* packs_of(float* data) { return reinterpret_cast<int32_t*>(data); }
INLINE void store_bits(int32_t* p, Bits v) { *reinterpret_cast<LooseBits*>(p) = v; }
INLINE Bits broadcast_bits(int32_t i) { return i - Bits{}; }
INLINE Bits bits_or(Bits v, Bits valid, Bits fill) { return (v & valid) | (fill & ~valid); }

}  // namespace VARIANT
}  // namespace prunegym
