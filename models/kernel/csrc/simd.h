// Vectors of LANES floats, by the compiler's vector extensions. There are no intrinsics, so one source works for every
// processor. The namespace VARIANT separates the copies of different widths.
#pragma once
#include <cstdint>
#include <utility>

#include "common.h"

#define TEXT(name) TEXT_OF(name)
#define TEXT_OF(name) #name
#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif

// Reorders the lanes of a and b by a list of literals. Lanes of b are numbered after those of a.
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Bits){__VA_ARGS__})
#endif

namespace prunegym {
namespace VARIANT {

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t Bits __attribute__((vector_size(LANES * 4)));
typedef float LooseVec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t LooseBits __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

INLINE int larger(int a, int b) { return a < b ? b : a; }
INLINE int smaller(int a, int b) { return a < b ? a : b; }
INLINE Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
INLINE Bits load_bits(const int32_t* p) { return *reinterpret_cast<const LooseBits*>(p); }
INLINE void store(float* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }
INLINE Vec broadcast(float f) { return f - Vec{}; }  // minus zero, not plus, which would change -0
INLINE Vec max(Vec a, Vec b) { return a < b ? b : a; }
INLINE Vec keep(Vec v, Bits bits) { return (Vec)((Bits)v & bits); }
INLINE Vec relu_if(bool relu, Vec v) { return relu ? max(v, Vec{}) : v; }

// I: the numbers of the lanes, 0, 1, ...
template <int... I>
struct Shuffles {
  COMMON static Vec even(Vec a, Vec b) { return SHUFFLE(a, b, 2 * I...); }
  COMMON static Vec odd(Vec a, Vec b) { return SHUFFLE(a, b, 2 * I + 1 ...); }
  COMMON static Vec low_pairs(Vec a, Vec b) { return SHUFFLE(a, b, I / 2 + I % 2 * LANES...); }
  COMMON static Vec high_pairs(Vec a, Vec b) { return SHUFFLE(a, b, (I + LANES) / 2 + I % 2 * LANES...); }
  COMMON static Bits first(int n) { return (Bits{I...} - n) < 0; }
};
template <int... I>
Shuffles<I...> shuffles(std::integer_sequence<int, I...>);
typedef decltype(shuffles(std::make_integer_sequence<int, LANES>{})) Lanes;

// All ones in the first n lanes.
INLINE Bits first_lanes(int n) { return Lanes::first(n); }
INLINE Vec even_lanes(Vec a, Vec b) { return Lanes::even(a, b); }
INLINE Vec odd_lanes(Vec a, Vec b) { return Lanes::odd(a, b); }
// a0 b0 a1 b1 ..., its first and its second half.
INLINE Vec interleave_low(Vec a, Vec b) { return Lanes::low_pairs(a, b); }
INLINE Vec interleave_high(Vec a, Vec b) { return Lanes::high_pairs(a, b); }
INLINE float sum(Vec v) {
  float s = 0;
  UNROLL for (int i = 0; i < LANES; i++) s += v[i];
  return s;
}

INLINE int vectors_for(int positions) { return (positions + LANES - 1) / LANES; }

// Stores a row of pixels in whole vectors, with zeros after its last pixel. The zeros are in the frame, or in the next
// row, which is stored later.
template <typename F>
INLINE void store_row(float* to, int width, F pixels_at) {
  for (int x = 0; x < width; x += LANES) store(to + x, keep(pixels_at(x), first_lanes(width - x)));
}

}  // namespace VARIANT
}  // namespace prunegym
