// Activations of whole vectors. ReLU and ReLU6 are two bounds, applied while a sum is still in a register. The others
// take longer, and run over the numbers that were just written.
#pragma once
#include <cstring>

#include "simd.h"

namespace prunegym {
namespace VARIANT {

// The bounds of an activation that only cuts off; infinities for any other.
struct Bounds {
  float low, high;
};
INLINE Bounds bounds_of(int activation) {
  const float infinity = __builtin_inff();
  return Bounds{activation == RELU || activation == RELU6 ? 0 : -infinity, activation == RELU6 ? 6 : infinity};
}
INLINE bool is_long(int activation) { return activation > RELU6; }
INLINE Vec min(Vec a, Vec b) { return b < a ? b : a; }
INLINE Vec clamp(Vec v, float low, float high) { return min(max(v, broadcast(low)), broadcast(high)); }
INLINE Vec clamp(Vec v, Bounds b) { return clamp(v, b.low, b.high); }

// e^x for -80 <= x <= 80: x = n ln 2 + r, and a polynomial for e^r. The sum with `round` leaves n in the lowest bits.
INLINE Vec exponential(Vec x) {
  const float round = 12582912.f;
  const Vec t = x * 1.44269504f + round, n = t - round;
  const Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f, p = p * r + 4.1665795894e-2f, p = p * r + 1.6666665459e-1f, p = p * r + 5.0000001201e-1f;
  return (Vec)((Bits)(p * r * r + r + 1.f) + (((Bits)t - 0x4B400000) << 23));
}

// 1 / x for positive x, by three steps of Newton's method. A division takes four times as long.
INLINE Vec inverse(Vec x) {
  Vec y = (Vec)(0x7EF311C3 - (Bits)x);
  UNROLL for (int i = 0; i < 3; i++) y = y * (2.f - x * y);
  return y;
}

INLINE Vec sigmoid(Vec x) { return inverse(exponential(clamp(0.f - x, -80, 80)) + 1.f); }

// x Phi(x), with the error function of Abramowitz and Stegun, 7.1.26: which is off by 2e-7 at most.
INLINE Vec gelu(Vec x) {
  const Vec z = max(x, 0.f - x) * 0.70710678f, t = inverse(z * 0.3275911f + 1.f);
  Vec p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f, p = p * t - 0.284496736f, p = p * t + 0.254829592f;
  const Vec tail = p * t * exponential(max(0.f - z * z, broadcast(-80)));  // 1 - erf(z)
  return 0.5f * (x + max(x, 0.f - x) * (1.f - tail));
}

INLINE Vec activated(int activation, Vec v) {
  switch (activation) {
    case RELU: return max(v, Vec{});
    case RELU6: return clamp(v, 0, 6);
    case HARDSWISH: return v * clamp(v * (1.f / 6) + 0.5f, 0, 1);
    case HARDSIGMOID: return clamp(v * (1.f / 6) + 0.5f, 0, 1);
    case SIGMOID: return sigmoid(v);
    case SILU: return max(v, broadcast(-80)) * sigmoid(v);
    case GELU: return gelu(v);
    default: return v;
  }
}

template <int A>
INLINE void activate_vectors(float* to, long count, const int32_t* valid) {
  for (long i = 0; i + LANES <= count; i += LANES) {
    const Vec v = activated(A, load(to + i));
    store(to + i, valid ? keep(v, load_bits(valid + i)) : v);
  }
  if (const long left = count % LANES) {  // touch no number after it: it may belong to another thread
    float some[LANES] = {};
    to += count - left;
    std::memcpy(some, to, left * sizeof(float));
    Vec v = activated(A, load(some));
    if (valid) v = keep(v, load_bits(valid + count - left));
    store(some, v);
    std::memcpy(to, some, left * sizeof(float));
  }
}

// Changes `count` numbers in place. If `valid` is given, numbers where it is 0 become 0.
[[maybe_unused]] static __attribute__((noinline)) void activate(int activation, float* to, long count, const int32_t* valid = nullptr) {
  switch (activation) {
    case RELU: return activate_vectors<RELU>(to, count, valid);
    case RELU6: return activate_vectors<RELU6>(to, count, valid);
    case HARDSWISH: return activate_vectors<HARDSWISH>(to, count, valid);
    case HARDSIGMOID: return activate_vectors<HARDSIGMOID>(to, count, valid);
    case SIGMOID: return activate_vectors<SIGMOID>(to, count, valid);
    case SILU: return activate_vectors<SILU>(to, count, valid);
    case GELU: return activate_vectors<GELU>(to, count, valid);
    default: return;
  }
}

}  // namespace VARIANT
}  // namespace prunegym
