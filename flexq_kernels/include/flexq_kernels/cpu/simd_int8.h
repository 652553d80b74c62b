// What integer kernels need beside simd.h: byte vectors, rounding to integers, comparisons of bit
// patterns. Sixteen 32-bit lanes again, so sixty-four bytes.
//
// The product is unsigned times signed bytes, because that is the one AVX2 has. Its pair sums are
// 16 bit and saturate; a kernel that uses dot_pairs proves that its operands cannot reach that.
#pragma once

#include "flexq_kernels/cpu/simd.h"

namespace flexq_kernels::FLEXQ_ISA {

#if defined(__AVX512BW__)

struct I8x64 {
  __m512i v;
};

FLEXQ_SIMD F32x16 div(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
FLEXQ_SIMD I32x16 broadcast_i32(int32_t x) { return {_mm512_set1_epi32(x)}; }
FLEXQ_SIMD I32x16 max(I32x16 a, I32x16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
FLEXQ_SIMD I32x16 min(I32x16 a, I32x16 b) { return {_mm512_min_epi32(a.v, b.v)}; }
FLEXQ_SIMD int32_t reduce_max(I32x16 a) { return _mm512_reduce_max_epi32(a.v); }
// The bits of |a|: ordered like the values, infinity above all numbers and NaN above infinity.
FLEXQ_SIMD I32x16 magnitude_bits(F32x16 a) {
  return {_mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(0x7fffffff))};
}
// To the nearest integer, half to even; |a| <= 2^22.
FLEXQ_SIMD I32x16 round_to_i32(F32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }
FLEXQ_SIMD void store_i8(int8_t* p, I32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}

FLEXQ_SIMD I8x64 load_i8x64(const void* p) { return {_mm512_loadu_si512(p)}; }
// The four bytes at p in every 32-bit lane.
FLEXQ_SIMD I8x64 broadcast_quad(const int8_t* p) {
  int32_t quad;
  std::memcpy(&quad, p, sizeof(quad));
  return {_mm512_set1_epi32(quad)};
}
// Lane n is u[2n] * s[2n] + u[2n + 1] * s[2n + 1], saturated; u unsigned, s signed.
FLEXQ_SIMD I16x32 dot_pairs(I8x64 u, I8x64 s) { return {_mm512_maddubs_epi16(u.v, s.v)}; }
FLEXQ_SIMD I16x32 add(I16x32 a, I16x32 b) { return {_mm512_add_epi16(a.v, b.v)}; }
FLEXQ_SIMD I16x32 one_i16() { return {_mm512_set1_epi16(1)}; }

#elif defined(__AVX2__)

struct I8x64 {
  __m256i lo, hi;
};

FLEXQ_SIMD F32x16 div(F32x16 a, F32x16 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
FLEXQ_SIMD I32x16 broadcast_i32(int32_t x) {
  const __m256i v = _mm256_set1_epi32(x);
  return {v, v};
}
FLEXQ_SIMD I32x16 max(I32x16 a, I32x16 b) {
  return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)};
}
FLEXQ_SIMD I32x16 min(I32x16 a, I32x16 b) {
  return {_mm256_min_epi32(a.lo, b.lo), _mm256_min_epi32(a.hi, b.hi)};
}
FLEXQ_SIMD int32_t reduce_max(I32x16 a) {
  const __m256i eight = _mm256_max_epi32(a.lo, a.hi);
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
// The bits of |a|: ordered like the values, infinity above all numbers and NaN above infinity.
FLEXQ_SIMD I32x16 magnitude_bits(F32x16 a) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  return {_mm256_and_si256(_mm256_castps_si256(a.lo), mask),
          _mm256_and_si256(_mm256_castps_si256(a.hi), mask)};
}
// To the nearest integer, half to even; |a| <= 2^22.
FLEXQ_SIMD I32x16 round_to_i32(F32x16 a) {
  return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)};
}
FLEXQ_SIMD void store_i8(int8_t* p, I32x16 a) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

FLEXQ_SIMD I8x64 load_i8x64(const void* p) {
  const __m256i* q = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
// The four bytes at p in every 32-bit lane.
FLEXQ_SIMD I8x64 broadcast_quad(const int8_t* p) {
  int32_t quad;
  std::memcpy(&quad, p, sizeof(quad));
  const __m256i v = _mm256_set1_epi32(quad);
  return {v, v};
}
// Lane n is u[2n] * s[2n] + u[2n + 1] * s[2n + 1], saturated; u unsigned, s signed.
FLEXQ_SIMD I16x32 dot_pairs(I8x64 u, I8x64 s) {
  return {_mm256_maddubs_epi16(u.lo, s.lo), _mm256_maddubs_epi16(u.hi, s.hi)};
}
FLEXQ_SIMD I16x32 add(I16x32 a, I16x32 b) {
  return {_mm256_add_epi16(a.lo, b.lo), _mm256_add_epi16(a.hi, b.hi)};
}
FLEXQ_SIMD I16x32 one_i16() {
  const __m256i v = _mm256_set1_epi16(1);
  return {v, v};
}

#else

typedef int8_t I8x64Raw __attribute__((vector_size(64)));

struct I8x64 {
  I8x64Raw v;
};

FLEXQ_SIMD F32x16 div(F32x16 a, F32x16 b) { return {a.v / b.v}; }
FLEXQ_SIMD I32x16 broadcast_i32(int32_t x) { return {x - I32x16Raw{}}; }
FLEXQ_SIMD I32x16 max(I32x16 a, I32x16 b) { return {a.v > b.v ? a.v : b.v}; }
FLEXQ_SIMD I32x16 min(I32x16 a, I32x16 b) { return {a.v < b.v ? a.v : b.v}; }
FLEXQ_SIMD int32_t reduce_max(I32x16 a) {
  int32_t best = a.v[0];
  for (int i = 1; i < kLanes; ++i) best = a.v[i] > best ? a.v[i] : best;
  return best;
}
// The bits of |a|: ordered like the values, infinity above all numbers and NaN above infinity.
FLEXQ_SIMD I32x16 magnitude_bits(F32x16 a) {
  I32x16Raw bits;
  std::memcpy(&bits, &a, sizeof(bits));
  return {bits & 0x7fffffff};
}
// To the nearest integer, half to even; |a| <= 2^22. Above 2^23 the ulp of a float is 1, so adding
// 1.5 * 2^23 rounds, and the integer stands in the low bits.
FLEXQ_SIMD I32x16 round_to_i32(F32x16 a) {
  const F32x16Raw shifted = a.v + 12582912.0f;
  I32x16Raw bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  return {bits - 0x4b400000};
}
FLEXQ_SIMD void store_i8(int8_t* p, I32x16 a) {
  const I8x16Raw bytes = __builtin_convertvector(a.v, I8x16Raw);
  std::memcpy(p, &bytes, sizeof(bytes));
}

FLEXQ_SIMD I8x64 load_i8x64(const void* p) {
  I8x64 a;
  std::memcpy(&a, p, sizeof(a));
  return a;
}
// The four bytes at p in every 32-bit lane.
FLEXQ_SIMD I8x64 broadcast_quad(const int8_t* p) {
  int32_t quad;
  std::memcpy(&quad, p, sizeof(quad));
  const I32x16 lanes = broadcast_i32(quad);
  I8x64 a;
  std::memcpy(&a, &lanes, sizeof(a));
  return a;
}
// Lane n is u[2n] * s[2n] + u[2n + 1] * s[2n + 1]; u unsigned, s signed. Bytes are widened by
// shifts: even ones to the top and back, odd ones from the top.
FLEXQ_SIMD I16x32 dot_pairs(I8x64 u, I8x64 s) {
  typedef uint16_t U16x32Raw __attribute__((vector_size(64)));
  U16x32Raw uu;
  I16x32Raw ss;
  std::memcpy(&uu, &u, sizeof(uu));
  std::memcpy(&ss, &s, sizeof(ss));
  const I16x32Raw even = reinterpret_cast<I16x32Raw>(uu & 0xff) * ((ss << 8) >> 8);
  const I16x32Raw odd = reinterpret_cast<I16x32Raw>(uu >> 8) * (ss >> 8);
  return {even + odd};
}
FLEXQ_SIMD I16x32 add(I16x32 a, I16x32 b) { return {a.v + b.v}; }
FLEXQ_SIMD I16x32 one_i16() { return {static_cast<int16_t>(1) - I16x32Raw{}}; }

#endif

}  // namespace flexq_kernels::FLEXQ_ISA
