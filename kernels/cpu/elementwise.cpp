// Row-wise operators on bfloat16 or float: add + RMSNorm, SiLU-and-mul, RoPE. Called through ctypes
// (native.py).
//
// Strides are in elements. Widths are multiples of 16. What torch's operators round to bfloat16 in
// between is rounded here too; float is never rounded in between.

#include "simd.h"

#include <cmath>
#include <type_traits>
#include <vector>

namespace flowprefill {
namespace {

// Elements below which waking the other threads takes longer than doing their work.
constexpr int64_t kWorthThreads = 1 << 14;

template <class T>
FLOWPREFILL_INLINE Floats rounded(Floats v) {
  if constexpr (std::is_same_v<T, float>)
    return v;
  else
    return round_bf16(v);
}

// x [rows, width], residual the same or null (then x + residual replaces residual), out [rows,
// width] = weight * rms_norm(x). round_first: round before the weight.
template <class T>
void add_rms_norm(const T* x, T* residual, const T* weight, T* out, int64_t rows, int64_t width,
                  float epsilon, bool round_first) {
#pragma omp parallel if (rows * width > kWorthThreads)
  {
    std::vector<float> sum(width);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
      Floats squares{};
      for (int64_t i = 0; i < width; i += kLanes) {
        Floats v = load(x + row * width + i);
        if (residual != nullptr) {
          v += load(residual + row * width + i);
          store(residual + row * width + i, v);
        }
        store(sum.data() + i, v);
        squares += v * v;
      }
      const float mean = sum_of(squares) / static_cast<float>(width);
      const float factor = 1.0f / std::sqrt(mean + epsilon);
      for (int64_t i = 0; i < width; i += kLanes) {
        Floats v = load(sum.data() + i) * factor;
        if (round_first) v = rounded<T>(v);
        store(out + row * width + i, v * load(weight + i));
      }
    }
  }
}

// x [rows, 2 * width] -> out [rows, width] = silu(first half) * second half.
template <class T>
void silu_and_mul(const T* x, T* out, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static) if (rows * width > kWorthThreads)
  for (int64_t row = 0; row < rows; ++row) {
    const T* gate = x + row * 2 * width;
    for (int64_t i = 0; i < width; i += kLanes) {
      const Floats g = load(gate + i);
      const Floats power = g * -1.44269504f;
      const Floats capped = power > 127.0f ? splat(127.0f) : power;
      const Floats activated = rounded<T>(g / (1.0f + exp2<6>(capped)));
      store(out + row * width + i, activated * load(gate + width + i));
    }
  }
}

// Rotate q and k in place (Neox style, whole head). cos_sin [positions, dim]: cosines, then sines.
// dim is a multiple of 32.
template <class T>
void rope(const int64_t* positions, T* query, int64_t query_stride, int64_t num_heads, T* key,
          int64_t key_stride, int64_t num_kv_heads, const T* cos_sin, int64_t num_tokens,
          int64_t dim) {
  const int64_t half = dim / 2;
#pragma omp parallel for schedule(static) \
    if (num_tokens * (num_heads + num_kv_heads) * dim > kWorthThreads)
  for (int64_t t = 0; t < num_tokens; ++t) {
    const T* cosines = cos_sin + positions[t] * dim;
    for (int64_t head = 0; head < num_heads + num_kv_heads; ++head) {
      T* x = head < num_heads ? query + t * query_stride + head * dim
                              : key + t * key_stride + (head - num_heads) * dim;
      for (int64_t i = 0; i < half; i += kLanes) {
        const Floats c = load(cosines + i), s = load(cosines + half + i);
        const Floats a = load(x + i), b = load(x + half + i);
        store(x + i, rounded<T>(a * c) - rounded<T>(b * s));
        store(x + half + i, rounded<T>(b * c) + rounded<T>(a * s));
      }
    }
  }
}

}  // namespace
}  // namespace flowprefill

using flowprefill::bf16;

#define FLOWPREFILL_ROW_WISE(T, NAME)                                                             \
  void flowprefill_add_rms_norm_##NAME(const T* x, T* residual, const T* weight, T* out,          \
                                       int64_t rows, int64_t width, float epsilon,                \
                                       int64_t round_first) {                                     \
    flowprefill::add_rms_norm<T>(x, residual, weight, out, rows, width, epsilon,                  \
                                 round_first != 0);                                               \
  }                                                                                               \
  void flowprefill_silu_and_mul_##NAME(const T* x, T* out, int64_t rows, int64_t width) {         \
    flowprefill::silu_and_mul<T>(x, out, rows, width);                                            \
  }                                                                                               \
  void flowprefill_rope_##NAME(const int64_t* positions, T* query, int64_t query_stride,          \
                               int64_t num_heads, T* key, int64_t key_stride,                     \
                               int64_t num_kv_heads, const T* cos_sin, int64_t num_tokens,        \
                               int64_t dim) {                                                     \
    flowprefill::rope<T>(positions, query, query_stride, num_heads, key, key_stride, num_kv_heads, \
                         cos_sin, num_tokens, dim);                                               \
  }

extern "C" {
FLOWPREFILL_ROW_WISE(bf16, bf16)
FLOWPREFILL_ROW_WISE(float, f32)
}
