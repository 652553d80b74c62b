// Sixteen-lane vectors for the *_simd.cc files: one AVX-512 register, two AVX2 registers, or what
// the compiler makes of a 64-byte vector on any CPU. Sixteen is the row count of a weight tile, so
// one source serves every ISA and no result depends on which one runs, but for fused rounding in
// fma() (the portable build rounds twice).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define FLEXQ_SIMD [[gnu::always_inline]] static inline

namespace flexq_kernels::FLEXQ_ISA {

constexpr int kLanes = 16;

#if defined(__AVX512BW__)

constexpr int kVectorRegisters = 32;  // in units of one sixteen-lane vector

struct F32x16 {
  __m512 v;
};
struct I32x16 {
  __m512i v;
};
struct I16x32 {
  __m512i v;
};

FLEXQ_SIMD F32x16 zero_f32() { return {_mm512_setzero_ps()}; }
FLEXQ_SIMD F32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
FLEXQ_SIMD F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
FLEXQ_SIMD void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
FLEXQ_SIMD F32x16 add(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
FLEXQ_SIMD F32x16 sub(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
FLEXQ_SIMD F32x16 mul(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
FLEXQ_SIMD F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
FLEXQ_SIMD F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
FLEXQ_SIMD F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
FLEXQ_SIMD F32x16 load_fp16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
FLEXQ_SIMD void store_fp16(uint16_t* p, F32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
FLEXQ_SIMD F32x16 load_bf16(const uint16_t* p) {
  const __m512i wide =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
FLEXQ_SIMD F32x16 load_i8(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}
FLEXQ_SIMD float reduce_add(F32x16 a) { return _mm512_reduce_add_ps(a.v); }
FLEXQ_SIMD float reduce_max(F32x16 a) { return _mm512_reduce_max_ps(a.v); }

FLEXQ_SIMD I32x16 zero_i32() { return {_mm512_setzero_si512()}; }
FLEXQ_SIMD I32x16 add(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
FLEXQ_SIMD void store(int32_t* p, I32x16 a) { _mm512_storeu_si512(p, a.v); }
FLEXQ_SIMD F32x16 to_f32(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
// Lane n of madd is a[2n] * b[2n] + a[2n + 1] * b[2n + 1].
FLEXQ_SIMD I32x16 madd(I16x32 a, I16x32 b) { return {_mm512_madd_epi16(a.v, b.v)}; }
FLEXQ_SIMD I16x32 load_i8_as_i16(const int8_t* p) {
  return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// The pair p[0], p[1] in every lane.
FLEXQ_SIMD I16x32 broadcast_pair(const int16_t* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof(pair));
  return {_mm512_set1_epi32(pair)};
}

#elif defined(__AVX2__)

constexpr int kVectorRegisters = 8;

struct F32x16 {
  __m256 lo, hi;
};
struct I32x16 {
  __m256i lo, hi;
};
struct I16x32 {
  __m256i lo, hi;
};

FLEXQ_SIMD F32x16 zero_f32() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
FLEXQ_SIMD F32x16 broadcast(float x) {
  const __m256 v = _mm256_set1_ps(x);
  return {v, v};
}
FLEXQ_SIMD F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
FLEXQ_SIMD void store(float* p, F32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
FLEXQ_SIMD F32x16 add(F32x16 a, F32x16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
FLEXQ_SIMD F32x16 sub(F32x16 a, F32x16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
FLEXQ_SIMD F32x16 mul(F32x16 a, F32x16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
FLEXQ_SIMD F32x16 max(F32x16 a, F32x16 b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
FLEXQ_SIMD F32x16 min(F32x16 a, F32x16 b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
FLEXQ_SIMD F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
FLEXQ_SIMD F32x16 load_fp16(const uint16_t* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
FLEXQ_SIMD void store_fp16(uint16_t* p, F32x16 a) {
  __m128i* q = reinterpret_cast<__m128i*>(p);
  constexpr int kRound = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm_storeu_si128(q, _mm256_cvtps_ph(a.lo, kRound));
  _mm_storeu_si128(q + 1, _mm256_cvtps_ph(a.hi, kRound));
}
FLEXQ_SIMD F32x16 load_bf16(const uint16_t* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  const __m256i lo = _mm256_cvtepu16_epi32(_mm_loadu_si128(q));
  const __m256i hi = _mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
}
FLEXQ_SIMD F32x16 load_i8(const int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
FLEXQ_SIMD float reduce_add(F32x16 a) {
  const __m256 eight = _mm256_add_ps(a.lo, a.hi);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}
FLEXQ_SIMD float reduce_max(F32x16 a) {
  const __m256 eight = _mm256_max_ps(a.lo, a.hi);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}

FLEXQ_SIMD I32x16 zero_i32() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
FLEXQ_SIMD I32x16 add(I32x16 a, I32x16 b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
FLEXQ_SIMD void store(int32_t* p, I32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), a.hi);
}
FLEXQ_SIMD F32x16 to_f32(I32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
// Lane n of madd is a[2n] * b[2n] + a[2n + 1] * b[2n + 1].
FLEXQ_SIMD I32x16 madd(I16x32 a, I16x32 b) {
  return {_mm256_madd_epi16(a.lo, b.lo), _mm256_madd_epi16(a.hi, b.hi)};
}
FLEXQ_SIMD I16x32 load_i8_as_i16(const int8_t* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128(q)), _mm256_cvtepi8_epi16(_mm_loadu_si128(q + 1))};
}
// The pair p[0], p[1] in every lane.
FLEXQ_SIMD I16x32 broadcast_pair(const int16_t* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof(pair));
  const __m256i v = _mm256_set1_epi32(pair);
  return {v, v};
}

#else

constexpr int kVectorRegisters = 4;

typedef float F32x16Raw __attribute__((vector_size(64)));
typedef int32_t I32x16Raw __attribute__((vector_size(64)));
typedef int16_t I16x32Raw __attribute__((vector_size(64)));
typedef uint16_t U16x16Raw __attribute__((vector_size(32)));
typedef int8_t I8x16Raw __attribute__((vector_size(16)));

struct F32x16 {
  F32x16Raw v;
};
struct I32x16 {
  I32x16Raw v;
};
struct I16x32 {
  I16x32Raw v;
};

FLEXQ_SIMD F32x16 zero_f32() { return {F32x16Raw{}}; }
FLEXQ_SIMD F32x16 broadcast(float x) { return {x - F32x16Raw{}}; }
FLEXQ_SIMD F32x16 load(const float* p) {
  F32x16 a;
  std::memcpy(&a, p, sizeof(a));
  return a;
}
FLEXQ_SIMD void store(float* p, F32x16 a) { std::memcpy(p, &a, sizeof(a)); }
FLEXQ_SIMD F32x16 add(F32x16 a, F32x16 b) { return {a.v + b.v}; }
FLEXQ_SIMD F32x16 sub(F32x16 a, F32x16 b) { return {a.v - b.v}; }
FLEXQ_SIMD F32x16 mul(F32x16 a, F32x16 b) { return {a.v * b.v}; }
FLEXQ_SIMD F32x16 max(F32x16 a, F32x16 b) { return {a.v > b.v ? a.v : b.v}; }
FLEXQ_SIMD F32x16 min(F32x16 a, F32x16 b) { return {a.v < b.v ? a.v : b.v}; }
FLEXQ_SIMD F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {a.v * b.v + c.v}; }
// 16-bit floats without hardware: the exponent is moved by a multiplication with a power of two,
// which is exact and also renormalises subnormals (2^112 = 0x77800000).
FLEXQ_SIMD F32x16 load_fp16(const uint16_t* p) {
  U16x16Raw raw;
  std::memcpy(&raw, p, sizeof(raw));
  const I32x16Raw half = __builtin_convertvector(raw, I32x16Raw);
  const I32x16Raw magnitude = (half & 0x7fff) << 13;
  F32x16Raw scaled;
  std::memcpy(&scaled, &magnitude, sizeof(scaled));
  scaled *= 5.192296858534828e33f;
  I32x16Raw bits;
  std::memcpy(&bits, &scaled, sizeof(bits));
  // Infinity and NaN: the exponent is all ones in both types.
  bits |= ((half & 0x7c00) == 0x7c00) & 0x7f800000;
  bits |= (half & 0x8000) << 16;
  F32x16 out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}
FLEXQ_SIMD void store_fp16(uint16_t* p, F32x16 a) {
  for (int i = 0; i < kLanes; ++i) {
    uint32_t bits;
    const float value = a.v[i];
    std::memcpy(&bits, &value, sizeof(bits));
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) {
      half = 0x7e00u;
    } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
      half = 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 rounds to a multiple of 2^-24
      float tiny;
      std::memcpy(&tiny, &magnitude, sizeof(tiny));
      tiny += 0.5f;
      std::memcpy(&half, &tiny, sizeof(half));
      half -= 0x3f000000u;
    } else {
      half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    }
    p[i] = static_cast<uint16_t>(sign | half);
  }
}
FLEXQ_SIMD F32x16 load_bf16(const uint16_t* p) {
  I32x16Raw bits;
  for (int i = 0; i < kLanes; ++i)
    bits[i] = static_cast<int32_t>(static_cast<uint32_t>(p[i]) << 16);
  F32x16 a;
  std::memcpy(&a, &bits, sizeof(a));
  return a;
}
FLEXQ_SIMD F32x16 load_i8(const int8_t* p) {
  I8x16Raw bytes;
  std::memcpy(&bytes, p, sizeof(bytes));
  return {__builtin_convertvector(__builtin_convertvector(bytes, I32x16Raw), F32x16Raw)};
}
FLEXQ_SIMD float reduce_add(F32x16 a) {
  float eight[8], four[4];
  for (int i = 0; i < 8; ++i) eight[i] = a.v[i] + a.v[i + 8];
  for (int i = 0; i < 4; ++i) four[i] = eight[i] + eight[i + 4];
  return (four[0] + four[2]) + (four[1] + four[3]);
}
FLEXQ_SIMD float reduce_max(F32x16 a) {
  float best = a.v[0];
  for (int i = 1; i < kLanes; ++i) best = a.v[i] > best ? a.v[i] : best;
  return best;
}

FLEXQ_SIMD I32x16 zero_i32() { return {I32x16Raw{}}; }
FLEXQ_SIMD I32x16 add(I32x16 a, I32x16 b) { return {a.v + b.v}; }
FLEXQ_SIMD void store(int32_t* p, I32x16 a) { std::memcpy(p, &a, sizeof(a)); }
FLEXQ_SIMD F32x16 to_f32(I32x16 a) { return {__builtin_convertvector(a.v, F32x16Raw)}; }
// Lane n of madd is a[2n] * b[2n] + a[2n + 1] * b[2n + 1].
FLEXQ_SIMD I32x16 madd(I16x32 a, I16x32 b) {
  I32x16 out;
  for (int i = 0; i < kLanes; ++i) {
    out.v[i] = static_cast<int32_t>(a.v[2 * i]) * b.v[2 * i] +
               static_cast<int32_t>(a.v[2 * i + 1]) * b.v[2 * i + 1];
  }
  return out;
}
FLEXQ_SIMD I16x32 load_i8_as_i16(const int8_t* p) {
  I16x32 a;
  for (int i = 0; i < 2 * kLanes; ++i) a.v[i] = p[i];
  return a;
}
// The pair p[0], p[1] in every lane.
FLEXQ_SIMD I16x32 broadcast_pair(const int16_t* p) {
  I16x32 a;
  for (int i = 0; i < kLanes; ++i) {
    a.v[2 * i] = p[0];
    a.v[2 * i + 1] = p[1];
  }
  return a;
}

#endif

}  // namespace flexq_kernels::FLEXQ_ISA
