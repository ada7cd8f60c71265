// Vectors of the compiled CPU kernels: one source, compiled for AVX-512 BF16 and for AVX2.
//
// The compiler's generic vectors carry all arithmetic; intrinsics appear only where AVX-512 BF16 has
// an instruction for what is several elsewhere. bfloat16 is uint16_t here, rounded to nearest.

#pragma once

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

namespace flowprefill {

using bf16 = uint16_t;

#if defined(__AVX512BF16__)
constexpr int kLanes = 16;   // floats of one vector
constexpr int kPanel = 4;    // vectors of one row of accumulators; 6 rows fill the registers
#else
constexpr int kLanes = 8;
constexpr int kPanel = 2;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef uint32_t word __attribute__((may_alias));  // a float, or two bfloat16

#define FLOWPREFILL_INLINE static inline __attribute__((always_inline))

template <class Vector>
FLOWPREFILL_INLINE Vector load_as(const void* from) {
  Vector v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <class Vector>
FLOWPREFILL_INLINE void store_as(void* to, Vector v) {
  std::memcpy(to, &v, sizeof(v));
}

FLOWPREFILL_INLINE Floats splat(float x) { return x - Floats{}; }

FLOWPREFILL_INLINE Floats load(const float* from) { return load_as<Floats>(from); }

FLOWPREFILL_INLINE Floats load(const bf16* from) {
  return (Floats)(__builtin_convertvector(load_as<Halves>(from), Words) << 16);
}

FLOWPREFILL_INLINE void store(float* to, Floats v) { store_as(to, v); }

FLOWPREFILL_INLINE void store(bf16* to, Floats v) {
#if defined(__AVX512BF16__)
  const __m256bh narrow = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(to, &narrow, sizeof(narrow));
#else
  Words bits = (Words)v;
  bits += 0x7fff + ((bits >> 16) & 1);
  store_as(to, __builtin_convertvector(bits >> 16, Halves));
#endif
}

FLOWPREFILL_INLINE Floats round_bf16(Floats v) {
  bf16 narrow[kLanes];
  store(narrow, v);
  return load(narrow);
}

// sum + a * b, where each lane of b, and a, is a pair of bfloat16.
FLOWPREFILL_INLINE Floats multiply_add_pairs(Floats sum, word a, Words b) {
#if defined(__AVX512BF16__)
  return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)),
                                  (__m512bh)b);
#else
  sum += (Floats)((a << 16) - Words{}) * (Floats)(b << 16);
  return sum + (Floats)((a & 0xffff0000u) - Words{}) * (Floats)(b & 0xffff0000u);
#endif
}

FLOWPREFILL_INLINE Floats max(Floats a, Floats b) { return a > b ? a : b; }

FLOWPREFILL_INLINE float sum_of(Floats v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

// 2^x, 0 for x < -126, unspecified above 127. Relative error below 2^-14 for degree 4 and 2^-22
// for degree 6 (Taylor's polynomial on [-1/2, 1/2]).
template <int Degree>
FLOWPREFILL_INLINE Floats exp2(Floats x) {
  constexpr float kTerms[] = {1.0f,        0.693147181f,   0.240226507f,  0.0555041087f,
                              0.00961812911f, 0.00133335581f, 0.000154035304f};
  const Floats shifted = x + 12582912.0f;  // 1.5 * 2^23: the nearest integer in the low bits
  const Floats rest = x - (shifted - 12582912.0f);
  Floats y = splat(kTerms[Degree]);
  for (int i = Degree - 1; i >= 0; --i) y = y * rest + kTerms[i];
  const Ints scaled = (Ints)y + ((Ints)shifted << 23);
  const Ints vanishes = x < -126.0f;  // false for NaN, which stays
  return (Floats)(scaled & ~vanishes);
}

}  // namespace flowprefill
