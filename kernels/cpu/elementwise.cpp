// Row-wise bfloat16 operators: add + RMSNorm, SiLU-and-mul, RoPE. Called through ctypes (native.py).
//
// Strides are in elements. Widths are multiples of 16. What torch's operators round to bfloat16 in
// between is rounded here too.

#include "simd.h"

#include <cmath>
#include <vector>

using flowprefill::bf16;
using flowprefill::Floats;
using flowprefill::kLanes;
using flowprefill::load;
using flowprefill::round_bf16;
using flowprefill::store;

// Elements below which waking the other threads takes longer than doing their work.
constexpr int64_t kWorthThreads = 1 << 16;

extern "C" {

// x [rows, width], residual the same or null (then x + residual replaces residual), out [rows,
// width] = weight * rms_norm(x). round_first: round before the weight.
void flowprefill_add_rms_norm(const bf16* x, bf16* residual, const bf16* weight, bf16* out,
                              int64_t rows, int64_t width, float epsilon, int64_t round_first) {
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
      const float mean = flowprefill::sum_of(squares) / static_cast<float>(width);
      const float factor = 1.0f / std::sqrt(mean + epsilon);
      for (int64_t i = 0; i < width; i += kLanes) {
        Floats v = load(sum.data() + i) * factor;
        if (round_first) v = round_bf16(v);
        store(out + row * width + i, v * load(weight + i));
      }
    }
  }
}

// x [rows, 2 * width] -> out [rows, width] = silu(first half) * second half.
void flowprefill_silu_and_mul(const bf16* x, bf16* out, int64_t rows, int64_t width) {
  // An element costs some four times as much as one of a norm.
#pragma omp parallel for schedule(static) if (rows * width > kWorthThreads / 4)
  for (int64_t row = 0; row < rows; ++row) {
    const bf16* gate = x + row * 2 * width;
    for (int64_t i = 0; i < width; i += kLanes) {
      const Floats g = load(gate + i);
      const Floats power = g * -1.44269504f;
      const Floats capped = power > 127.0f ? flowprefill::splat(127.0f) : power;
      const Floats activated = round_bf16(g / (1.0f + flowprefill::exp2<6>(capped)));
      store(out + row * width + i, activated * load(gate + width + i));
    }
  }
}

// Rotate q and k in place (Neox style, whole head). cos_sin [positions, dim]: cosines, then sines.
// dim is a multiple of 32.
void flowprefill_rope(const int64_t* positions, bf16* query, int64_t query_stride,
                      int64_t num_heads, bf16* key, int64_t key_stride, int64_t num_kv_heads,
                      const bf16* cos_sin, int64_t num_tokens, int64_t dim) {
  const int64_t half = dim / 2;
#pragma omp parallel for schedule(static) \
    if (num_tokens * (num_heads + num_kv_heads) * dim > kWorthThreads)
  for (int64_t t = 0; t < num_tokens; ++t) {
    const bf16* cosines = cos_sin + positions[t] * dim;
    for (int64_t head = 0; head < num_heads + num_kv_heads; ++head) {
      bf16* x = head < num_heads ? query + t * query_stride + head * dim
                                 : key + t * key_stride + (head - num_heads) * dim;
      for (int64_t i = 0; i < half; i += kLanes) {
        const Floats c = load(cosines + i), s = load(cosines + half + i);
        const Floats a = load(x + i), b = load(x + half + i);
        store(x + i, round_bf16(a * c) - round_bf16(b * s));
        store(x + half + i, round_bf16(b * c) + round_bf16(a * s));
      }
    }
  }
}
}
