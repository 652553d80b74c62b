// What the row ops and attention need beyond simd.h and simd_int8.h (div): selection, exp, bf16
// stores and the 16 x 16 transpose. The same rules hold (see isa.h): every function is inlined.
#pragma once

#include "flexq_kernels/cpu/simd_int8.h"

namespace flexq_kernels::FLEXQ_ISA {

#if defined(__AVX512BW__)

// a < b ? yes : no, lane by lane; no where a or b is NaN.
FLEXQ_SIMD F32x16 select_less(F32x16 a, F32x16 b, F32x16 yes, F32x16 no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
// 2^n of an integer-valued n in [-126, 127].
FLEXQ_SIMD F32x16 pow2(F32x16 n) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
FLEXQ_SIMD void store_bf16(uint16_t* p, F32x16 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  __m512i out = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  out = _mm512_srli_epi32(out, 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  out = _mm512_mask_or_epi32(out, nan, high, _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(out));
}
FLEXQ_SIMD void transpose(F32x16 (&r)[16]) {
  __m512 t[16], u[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v);
  }
  // u[4 i + c], 128-bit lane l: column 4 l + c of rows 4 i … 4 i + 3.
  for (int i = 0; i < 16; i += 4) {
    const __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]);
    const __m512d c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
    u[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    u[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    u[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    u[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  for (int c = 0; c < 4; ++c) {
    const __m512 even_a = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x88);
    const __m512 even_b = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x88);
    const __m512 odd_a = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xdd);
    const __m512 odd_b = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xdd);
    r[c].v = _mm512_shuffle_f32x4(even_a, even_b, 0x88);
    r[8 + c].v = _mm512_shuffle_f32x4(even_a, even_b, 0xdd);
    r[4 + c].v = _mm512_shuffle_f32x4(odd_a, odd_b, 0x88);
    r[12 + c].v = _mm512_shuffle_f32x4(odd_a, odd_b, 0xdd);
  }
}

#elif defined(__AVX2__)

// a < b ? yes : no, lane by lane; no where a or b is NaN.
FLEXQ_SIMD F32x16 select_less(F32x16 a, F32x16 b, F32x16 yes, F32x16 no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
          _mm256_blendv_ps(no.hi, yes.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
}
FLEXQ_SIMD __m256 pow2_half(__m256 n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
// 2^n of an integer-valued n in [-126, 127].
FLEXQ_SIMD F32x16 pow2(F32x16 n) { return {pow2_half(n.lo), pow2_half(n.hi)}; }
FLEXQ_SIMD __m256i bf16_half(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i high = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  __m256i out = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  out = _mm256_srli_epi32(out, 16);
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(out, quiet, nan);
}
FLEXQ_SIMD void store_bf16(uint16_t* p, F32x16 a) {
  const __m256i packed = _mm256_packus_epi32(bf16_half(a.lo), bf16_half(a.hi));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
FLEXQ_SIMD void transpose8(__m256 (&r)[8]) {
  __m256 t[8], u[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x20);
    r[4 + i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x31);
  }
}
FLEXQ_SIMD void transpose(F32x16 (&r)[16]) {
  __m256 a[8], b[8], c[8], d[8];  // quarters: rows 0-7 low, rows 0-7 high, rows 8-15 low, high
  for (int i = 0; i < 8; ++i) {
    a[i] = r[i].lo;
    b[i] = r[i].hi;
    c[i] = r[8 + i].lo;
    d[i] = r[8 + i].hi;
  }
  transpose8(a);
  transpose8(b);
  transpose8(c);
  transpose8(d);
  for (int i = 0; i < 8; ++i) {
    r[i] = {a[i], c[i]};
    r[8 + i] = {b[i], d[i]};
  }
}

#else

// a < b ? yes : no, lane by lane; no where a or b is NaN.
FLEXQ_SIMD F32x16 select_less(F32x16 a, F32x16 b, F32x16 yes, F32x16 no) {
  return {a.v < b.v ? yes.v : no.v};
}
// 2^n of an integer-valued n in [-126, 127].
FLEXQ_SIMD F32x16 pow2(F32x16 n) {
  const I32x16Raw bits = (__builtin_convertvector(n.v, I32x16Raw) + 127) << 23;
  F32x16 out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}
FLEXQ_SIMD void store_bf16(uint16_t* p, F32x16 a) {
  for (int i = 0; i < kLanes; ++i) {
    uint32_t bits;
    const float value = a.v[i];
    std::memcpy(&bits, &value, sizeof(bits));
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    p[i] = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : rounded);
  }
}
FLEXQ_SIMD void transpose(F32x16 (&r)[16]) {
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < i; ++j) {
      const float t = r[i].v[j];
      r[i].v[j] = r[j].v[i];
      r[j].v[i] = t;
    }
  }
}

#endif

// e^x within about 1 ulp for x in [-87.3, 88.37]; 0 below, e^88.37 above; NaN stays NaN, for which
// max and min must have x second.
// x = n ln 2 + r, |r| <= ln 2 / 2: the Taylor series to r^7 / 7! leaves 6e-9.
FLEXQ_SIMD F32x16 exp(F32x16 x) {
  const F32x16 low = broadcast(-87.33f);
  const F32x16 c = min(broadcast(88.37f), max(low, x));
  const F32x16 magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const F32x16 n = sub(add(mul(c, broadcast(1.44269504f)), magic), magic);
  // ln 2 in two parts; the first has nine bits, so its product with n is exact without fma too.
  F32x16 r = fma(n, broadcast(-0.693359375f), c);
  r = fma(n, broadcast(2.12194440054690583e-4f), r);
  F32x16 p = broadcast(1.0f / 5040.0f);
  p = fma(p, r, broadcast(1.0f / 720.0f));
  p = fma(p, r, broadcast(1.0f / 120.0f));
  p = fma(p, r, broadcast(1.0f / 24.0f));
  p = fma(p, r, broadcast(1.0f / 6.0f));
  p = fma(p, r, broadcast(0.5f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  return select_less(x, low, zero_f32(), mul(p, pow2(n)));
}

}  // namespace flexq_kernels::FLEXQ_ISA
