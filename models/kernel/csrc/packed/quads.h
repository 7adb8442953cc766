// Maps of bytes. A byte q means scale * (q - zero). Four channels of a pixel are one number of 32 bits, a quad. So a
// map of C kept channels lies in memory as (C + 3) / 4 channels of floats would: all of Map's distances hold, and copies
// of floats copy quads. Bytes of a last quad that belong to no channel have any value; their weights are zero.
#pragma once
#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "../activation.h"

namespace prunegym {
namespace VARIANT {

typedef uint8_t Bytes __attribute__((vector_size(LANES * 4)));

INLINE const int32_t* quads_of(const float* data) { return reinterpret_cast<const int32_t*>(data); }
INLINE int32_t* quads_of(float* data) { return reinterpret_cast<int32_t*>(data); }
INLINE void store_bits(int32_t* p, Bits v) { *reinterpret_cast<LooseBits*>(p) = v; }
INLINE Bits broadcast_bits(int32_t i) { return i - Bits{}; }
INLINE Bits bits_or(Bits v, Bits valid, Bits fill) { return (v & valid) | (fill & ~valid); }

// Byte j of each quad.
INLINE Vec byte_of(Bits quads, int j) { return __builtin_convertvector((quads >> (8 * j)) & 255, Vec); }

// Rounded to the nearest byte, ties to the even one. The sum with 1.5 * 2^23 leaves it in the lowest bits.
INLINE Bits to_byte(Vec v) { return (Bits)(clamp(v, 0, 255) + 12582912.f) & 255; }

// Four vectors, from -FAR to FAR, as the bytes of quads.
constexpr float FAR = 1e6f;
INLINE Bits to_quads(const Vec (&v)[4]) {
#if defined(__AVX512BW__)
  const auto whole = [&](int j) { return _mm512_cvtps_epi32((__m512)v[j]); };  // ties to even, as to_byte
  // Saturating packs leave in each 128 bits four bytes of each vector, one vector after the other.
  const __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(whole(0), whole(1)), _mm512_packs_epi32(whole(2), whole(3)));
  const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return (Bits)_mm512_shuffle_epi8(bytes, order);
#else
  return to_byte(v[0]) | to_byte(v[1]) << 8 | to_byte(v[2]) << 16 | to_byte(v[3]) << 24;
#endif
}

// The larger of each two bytes.
INLINE Bits max_bytes(Bits a, Bits b) { return (Bits)((Bytes)a > (Bytes)b ? (Bytes)a : (Bytes)b); }

// The sums of q - zero over a channel's pixels, for the four channels of a quad. The flat row from the origin is summed:
// what is not a pixel there is `zero`, so it adds nothing.
INLINE void sum_pixels(const Map& map, const int32_t* quads, int zero, long* sums) {
  const int vectors = vectors_for(map.height * map.stride);
  Bits part[4];
  for (int j = 0; j < 4; j++) sums[j] = 0;
  for (int first = 0; first < vectors; first += 1 << 16) {  // few enough for 32 bits
    UNROLL for (int j = 0; j < 4; j++) part[j] = Bits{};
    const int last = smaller(first + (1 << 16), vectors);
    for (int i = first; i < last; i++) {
      const Bits v = load_bits(quads + map.origin + static_cast<long>(i) * LANES);
      UNROLL for (int j = 0; j < 4; j++) part[j] += ((v >> (8 * j)) & 255) - zero;
    }
    for (int j = 0; j < 4; j++)
      for (int lane = 0; lane < LANES; lane++) sums[j] += part[j][lane];
  }
}

}  // namespace VARIANT
}  // namespace prunegym
