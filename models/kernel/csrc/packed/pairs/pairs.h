// Numbers of bfloat16, which are the upper halves of floats: two channels in a pack (packs.h), which is then called a pair.
// Products of two are exact; sums are floats.
#pragma once
#include "../packs.h"

namespace prunegym {
namespace VARIANT {

constexpr int PER = 2;
constexpr bool MAY_BE_NAN = true;
typedef uint16_t Weight;

INLINE int32_t frame_of(int) { return 0; }
INLINE Vec number_of(Bits pairs, int j) { return (Vec)(j ? pairs & static_cast<int32_t>(0xFFFF0000) : pairs << 16); }
struct Unit {};
INLINE Unit unit_of(const View&) { return Unit{}; }
INLINE Vec stored(Vec v, Unit) { return v; }
INLINE Vec meant(Vec v, Unit) { return v; }

// A float's upper half, rounded to the nearest, ties to even.
INLINE Bits upper(Vec v) {
  const Bits bits = (Bits)v;
  return (bits + 0x7FFF + ((bits >> 16) & 1)) & static_cast<int32_t>(0xFFFF0000);
}

INLINE Bits packed(const Vec (&v)[PER]) {
#if defined(__AVX512BF16__)
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)v[1], (__m512)v[0]);  // those of v[0], then those of v[1]
  const __m512i place = (__m512i)(Bits{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} * 0x10001 + (16 << 16));
  return (Bits)_mm512_permutexvar_epi16(place, halves);
#else
  return ((upper(v[0]) >> 16) & 0xFFFF) | upper(v[1]);
#endif
}

INLINE Bits larger_numbers(Bits a, Bits b) {
  const Bits low = (Bits)max(number_of(a, 0), number_of(b, 0)), high = (Bits)max(number_of(a, 1), number_of(b, 1));
  return ((low >> 16) & 0xFFFF) | high;
}
INLINE int32_t least(bool relu, int) { return relu ? 0 : static_cast<int32_t>(0xFF80FF80); }  // minus infinity

// The flat row from the origin is summed: what is not a pixel there is 0.
INLINE void add_pixels(const Map& map, const int32_t* pairs, int, float* sums) {
  const int vectors = vectors_for(map.height * map.stride);
  Vec total[PER] = {};
  for (int i = 0; i < vectors; i++) {
    const Bits v = load_bits(pairs + map.origin + static_cast<long>(i) * LANES);
    UNROLL for (int j = 0; j < PER; j++) total[j] += number_of(v, j);
  }
  for (int j = 0; j < PER; j++) sums[j] = sum(total[j]);
}

// The sums of some rows, at one vector of columns.
INLINE void add_columns(const int32_t* pairs, long stride, int rows, int, Vec (&sums)[PER]) {
  UNROLL for (int j = 0; j < PER; j++) sums[j] = Vec{};
  for (int y = 0; y < rows; y++) {
    const Bits v = load_bits(pairs + y * stride);
    UNROLL for (int j = 0; j < PER; j++) sums[j] += number_of(v, j);
  }
}

INLINE Bits dot(Bits sums, Bits pixels, int32_t weights) {
#if defined(__AVX512BF16__)
  return (Bits)_mm512_dpbf16_ps((__m512)sums, (__m512bh)pixels, (__m512bh)_mm512_set1_epi32(weights));
#else
  const Bits w = broadcast_bits(weights);
  const Vec low = number_of(pixels, 0) * number_of(w, 0), high = number_of(pixels, 1) * number_of(w, 1);
  return (Bits)((Vec)sums + low + high);
#endif
}

// Copies the weights of kept inputs under one tap, with a zero up to a whole pair. `to` may be written 64 bytes further.
template <bool>
INLINE void gather_tap([[maybe_unused]] const uint64_t* chosen, [[maybe_unused]] Kept kept, [[maybe_unused]] int inputs,
                       const Weight* from, Weight* to, Bits&) {
#ifdef __AVX512VBMI2__
  for (int at = 0; at < inputs; at += 32) {
    const uint32_t some = static_cast<uint32_t>(chosen[at / 64] >> at % 64);
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi16(some, _mm512_loadu_si512(from + at)));
    to += __builtin_popcount(some);
  }
  std::memset(to, 0, 4);
#else
  for (int i = 0; i < kept.count; i++) to[i] = from[kept.index[i]];
  std::memset(to + kept.count, 0, 4);
#endif
}

template <bool>
INLINE void ends_of(const Conv&, int, float bias, Bits, float& factor, float& summand) {
  factor = 1, summand = bias;
}

// sum + summand + second, and the activation.
template <bool SECOND, bool LONG, typename F>
INLINE Vec scaled(const Conv& c, Bits sums, F, F summand, Vec second) {
  Vec v = (Vec)sums + summand;
  if (SECOND) v = v + second;
  if (LONG) v = activated(c.activation, v);
  return clamp(v, c.packed.low, c.packed.high);
}

}  // namespace VARIANT
}  // namespace prunegym
