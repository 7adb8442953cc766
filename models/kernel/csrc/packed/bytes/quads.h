// Bytes, four channels in a pack (packs.h), which is then called a quad. A byte q means scale * (q - zero).
#pragma once
#include "../packs.h"

namespace prunegym {
namespace VARIANT {

constexpr int PER = 4;
constexpr bool MAY_BE_NAN = false;
typedef int8_t Weight;
typedef uint8_t Bytes __attribute__((vector_size(LANES * 4)));

INLINE int32_t frame_of(int zero) { return zero * 0x01010101; }
INLINE Vec number_of(Bits quads, int j) { return __builtin_convertvector((quads >> (8 * j)) & 255, Vec); }

// q = x / scale + zero, and x = (q - zero) * scale.
struct Unit {
  float scale, inverse, zero;
};
INLINE Unit unit_of(const View& view) { return Unit{view.scale, 1 / view.scale, static_cast<float>(view.zero)}; }
INLINE Vec stored(Vec v, Unit unit) {
  v = v * unit.inverse;
  return clamp(v + unit.zero, 0, 255);
}
INLINE Vec meant(Vec v, Unit unit) { return (v - unit.zero) * unit.scale; }

// Rounded to the nearest byte, ties to the even one. The sum with 1.5 * 2^23 leaves it in the lowest bits.
INLINE Bits to_byte(Vec v) { return (Bits)(clamp(v, 0, 255) + 12582912.f) & 255; }

// Four vectors, from -1e6 to 1e6.
INLINE Bits packed(const Vec (&v)[PER]) {
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

INLINE Bits larger_numbers(Bits a, Bits b) { return (Bits)((Bytes)a > (Bytes)b ? (Bytes)a : (Bytes)b); }
INLINE int32_t least(bool relu, int zero) { return relu ? frame_of(zero) : 0; }

// The sums of q - zero over a channel's pixels, for the four channels of a quad. The flat row from the origin is summed:
// what is not a pixel there is `zero`, so it adds nothing.
INLINE void add_pixels(const Map& map, const int32_t* quads, int zero, float* sums) {
  const int vectors = vectors_for(map.height * map.stride);
  long total[PER] = {};
  for (int first = 0; first < vectors; first += 1 << 16) {  // few enough for 32 bits
    Bits part[PER] = {};
    const int last = smaller(first + (1 << 16), vectors);
    for (int i = first; i < last; i++) {
      const Bits v = load_bits(quads + map.origin + static_cast<long>(i) * LANES);
      UNROLL for (int j = 0; j < PER; j++) part[j] += ((v >> (8 * j)) & 255) - zero;
    }
    for (int j = 0; j < PER; j++)
      for (int lane = 0; lane < LANES; lane++) total[j] += part[j][lane];
  }
  for (int j = 0; j < PER; j++) sums[j] = static_cast<float>(total[j]);
}

// The same over some rows, at one vector of columns.
INLINE void add_columns(const int32_t* quads, long stride, int rows, int zero, Vec (&sums)[PER]) {
  UNROLL for (int j = 0; j < PER; j++) sums[j] = Vec{};
  for (int first = 0; first < rows; first += 1 << 22) {  // few enough for 32 bits
    const int last = smaller(first + (1 << 22), rows);
    Bits total[PER] = {};
    for (int y = first; y < last; y++) {
      const Bits v = load_bits(quads + y * stride);
      UNROLL for (int j = 0; j < PER; j++) total[j] += (v >> (8 * j)) & 255;
    }
    UNROLL for (int j = 0; j < PER; j++) sums[j] += __builtin_convertvector(total[j] - (last - first) * zero, Vec);
  }
}

// Adds the products of a quad's four bytes: those of pixels have no sign, those of weights have one.
INLINE Bits dot(Bits sums, Bits pixels, int32_t weights) {
#if defined(__AVX512VNNI__)
  return (Bits)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)pixels, _mm512_set1_epi32(weights));
#elif defined(__AVXVNNI__)
  return (Bits)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)pixels, _mm256_set1_epi32(weights));
#elif defined(__AVX2__) && LANES == 8
  // Products of 16 bits: bytes 0 and 2, then 1 and 3. The instruction for bytes would cut their sums off.
  const __m256i p = (__m256i)pixels, w = _mm256_set1_epi32(weights), low = _mm256_set1_epi32(0x00FF00FF);
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(p, low), _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(p, 8), _mm256_srai_epi16(w, 8));
  return sums + (Bits)even + (Bits)odd;
#else
  UNROLL for (int j = 0; j < PER; j++)
    sums += ((pixels >> (8 * j)) & 255) * static_cast<int32_t>(static_cast<int8_t>(weights >> (8 * j)));
  return sums;
#endif
}

// Copies the weights of kept inputs under one tap, with zeros up to a whole quad, and if asked adds them to `total`. `to`
// may be written 64 bytes further.
template <bool TOTAL>
INLINE void gather_tap([[maybe_unused]] const uint64_t* chosen, [[maybe_unused]] Kept kept, [[maybe_unused]] int inputs,
                       const Weight* from, Weight* to, Bits& total) {
#ifdef __AVX512VBMI2__
  for (int at = 0; at < inputs; at += 64) {
    const __m512i w = _mm512_maskz_compress_epi8(chosen[at / 64], _mm512_loadu_si512(from + at));
    _mm512_storeu_si512(to, w);
    if (TOTAL) total = (Bits)_mm512_dpbusd_epi32((__m512i)total, _mm512_set1_epi8(1), w);
    to += __builtin_popcountll(chosen[at / 64]);
  }
  std::memset(to, 0, 4);
#else
  for (int i = 0; i < kept.count; i++) total[0] += to[i] = from[kept.index[i]];
  std::memset(to + kept.count, 0, 4);
#endif
}

// What the sums of products of output o are multiplied with, and what is added then. total: of all its weights, which the
// input's zero point adds to the sums of products.
template <bool TOTAL>
INLINE void ends_of(const Conv& c, int o, float bias, Bits total, float& factor, float& summand) {
  const Packed& p = c.packed;
  int32_t sum = 0;
  for (int lane = 0; TOTAL && lane < LANES; lane++) sum += total[lane];
  const float zeros = static_cast<float>(p.zero_in * sum) * p.factor[o];
  factor = p.factor[o];
  summand = bias * p.inverse_unit - zeros + p.offset;
}

// sum * factor + summand + second, in units of the output. LONG: an activation that is more than two bounds. F: a number
// for all lanes, or a vector.
template <bool SECOND, bool LONG, typename F>
INLINE Vec scaled(const Conv& c, Bits sums, F factor, F summand, Vec second) {
  const Packed& p = c.packed;
  Vec v = __builtin_convertvector(sums, Vec) * factor;
  v = v + summand;
  if (SECOND) {
    const Vec more = second * p.scale_second;
    v = v + more;
  }
  if (LONG) {
    const float zero = static_cast<float>(p.zero_out);
    v = activated(c.activation, (v - zero) * p.unit) * p.inverse_unit;
    v = v + zero;
  }
  return clamp(v, p.low, p.high);
}

}  // namespace VARIANT
}  // namespace prunegym
