// Vectors of LANES floats, by the compiler's vector extensions: no intrinsics, so one source serves every processor.
// VARIANT, the namespace, keeps the copies of different widths apart.
#pragma once
#include <cstdint>

#include "common.h"

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif

// Reorder the lanes of a and b (numbered on from a's) by a list of literals.
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Bits){__VA_ARGS__})
#endif
#if LANES == 4
#define EVEN_LANES 0, 2, 4, 6
#define ODD_LANES 1, 3, 5, 7
#define LANE_NUMBERS 0, 1, 2, 3
#define LOW_PAIRS 0, 4, 1, 5
#define HIGH_PAIRS 2, 6, 3, 7
#elif LANES == 8
#define EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14
#define ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15
#define LANE_NUMBERS 0, 1, 2, 3, 4, 5, 6, 7
#define LOW_PAIRS 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH_PAIRS 4, 12, 5, 13, 6, 14, 7, 15
#else
#define EVEN_LANES 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD_LANES 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define LANE_NUMBERS 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#define LOW_PAIRS 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH_PAIRS 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#endif

namespace prunegym {
namespace VARIANT {

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t Bits __attribute__((vector_size(LANES * 4)));
typedef float LooseVec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t LooseBits __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

INLINE Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
INLINE Bits load_bits(const int32_t* p) { return *reinterpret_cast<const LooseBits*>(p); }
INLINE void store(float* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }
INLINE Vec broadcast(float f) { return f - Vec{}; }  // minus zero, not plus: that would not be a no-op for -0
INLINE Vec max(Vec a, Vec b) { return a < b ? b : a; }
INLINE Vec keep(Vec v, Bits bits) { return (Vec)((Bits)v & bits); }
INLINE Vec relu_if(bool relu, Vec v) { return relu ? max(v, Vec{}) : v; }
// All ones in the first n lanes.
INLINE Bits first_lanes(int n) { return (Bits{LANE_NUMBERS} - n) < 0; }
INLINE Vec even_lanes(Vec a, Vec b) { return SHUFFLE(a, b, EVEN_LANES); }
INLINE Vec odd_lanes(Vec a, Vec b) { return SHUFFLE(a, b, ODD_LANES); }
// a0 b0 a1 b1 ..., its first and its second half.
INLINE Vec interleave_low(Vec a, Vec b) { return SHUFFLE(a, b, LOW_PAIRS); }
INLINE Vec interleave_high(Vec a, Vec b) { return SHUFFLE(a, b, HIGH_PAIRS); }
INLINE float sum(Vec v) {
  float s = 0;
  UNROLL for (int i = 0; i < LANES; i++) s += v[i];
  return s;
}

}  // namespace VARIANT
}  // namespace prunegym
