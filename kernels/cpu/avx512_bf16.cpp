// bfloat16 kernels for x86-64 CPUs with AVX-512 BF16 (Zen 4, Cooper Lake, Sapphire Rapids and
// later): prefill attention over a paged KV cache, add + RMSNorm, RoPE, SiLU-and-mul.
//
// Plain C interface, called through ctypes (native.py). Pointers are to bfloat16 (uint16_t) unless
// said otherwise; strides are in elements. Threads come from OpenMP, which is torch's own pool.
//
// Attention packs the keys and values of one sequence once per layer into the layout that the
// dot-product instruction wants, then runs query blocks against it with an online softmax
// (FlashAttention's recurrence). Scores and sums are float32; probabilities are rounded to
// bfloat16 for the second product.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

constexpr int kKeyBlock = 64;                // keys of one packed block
constexpr int kKeysAtOnce = 2 * kKeyBlock;   // keys of one softmax step
constexpr int kRowsAtOnce = 96;              // query rows (tokens x heads of a group) of one task
constexpr float kNegInf = -std::numeric_limits<float>::infinity();

inline __m512 load_bf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

inline void store_bf16(uint16_t* p, __m512 v) {
  const __m256bh narrow = _mm512_cvtneps_pbh(v);
  std::memcpy(p, &narrow, sizeof(narrow));
}

inline __m512 round_bf16(__m512 v) {
  const __m256bh narrow = _mm512_cvtneps_pbh(v);
  __m256i bits;
  std::memcpy(&bits, &narrow, sizeof(bits));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// exp(x) for x <= 88, relative error below 2e-7 (degree-6 polynomial on [-ln2/2, ln2/2]).
inline __m512 exp_ps(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-104.0f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 y = _mm512_set1_ps(1.0f / 720);
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 120));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 24));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 6));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.5f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
  y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(y, n);
}

// C[MR, 64] (+)= A[MR, 2 * k_pairs] B, with B packed as [k_pairs][ldb][2].
template <int MR>
inline void multiply_rows(const uint16_t* a, int lda, const uint16_t* b, int ldb, int k_pairs,
                          float* c, int ldc, bool accumulate) {
  __m512 acc[MR][4];
  for (int m = 0; m < MR; ++m)
    for (int v = 0; v < 4; ++v)
      acc[m][v] = accumulate ? _mm512_loadu_ps(c + m * ldc + 16 * v) : _mm512_setzero_ps();
  for (int k = 0; k < k_pairs; ++k) {
    __m512bh bv[4];
    for (int v = 0; v < 4; ++v)
      std::memcpy(&bv[v], b + (static_cast<size_t>(k) * ldb + 16 * v) * 2, 64);
    for (int m = 0; m < MR; ++m) {
      int32_t pair;
      std::memcpy(&pair, a + static_cast<size_t>(m) * lda + 2 * k, 4);
      const __m512i wide = _mm512_set1_epi32(pair);
      __m512bh av;
      std::memcpy(&av, &wide, 64);
      for (int v = 0; v < 4; ++v) acc[m][v] = _mm512_dpbf16_ps(acc[m][v], av, bv[v]);
    }
  }
  for (int m = 0; m < MR; ++m)
    for (int v = 0; v < 4; ++v) _mm512_storeu_ps(c + m * ldc + 16 * v, acc[m][v]);
}

void multiply(const uint16_t* a, int lda, int rows, const uint16_t* b, int ldb, int k_pairs,
              float* c, int ldc, bool accumulate) {
  int m = 0;
  for (; m + 6 <= rows; m += 6)
    multiply_rows<6>(a + static_cast<size_t>(m) * lda, lda, b, ldb, k_pairs, c + m * ldc, ldc,
                     accumulate);
  const uint16_t* rest = a + static_cast<size_t>(m) * lda;
  float* out = c + m * ldc;
  switch (rows - m) {
    case 5: multiply_rows<5>(rest, lda, b, ldb, k_pairs, out, ldc, accumulate); break;
    case 4: multiply_rows<4>(rest, lda, b, ldb, k_pairs, out, ldc, accumulate); break;
    case 3: multiply_rows<3>(rest, lda, b, ldb, k_pairs, out, ldc, accumulate); break;
    case 2: multiply_rows<2>(rest, lda, b, ldb, k_pairs, out, ldc, accumulate); break;
    case 1: multiply_rows<1>(rest, lda, b, ldb, k_pairs, out, ldc, accumulate); break;
    default: break;
  }
}

struct Scratch {
  std::vector<uint16_t> query, probability;
  std::vector<float> score, sum, row_max, row_sum;

  void reserve(int rows, int dim) {
    query.resize(static_cast<size_t>(rows) * dim);
    probability.resize(static_cast<size_t>(rows) * kKeysAtOnce);
    score.resize(static_cast<size_t>(rows) * kKeysAtOnce);
    sum.assign(static_cast<size_t>(rows) * dim, 0.0f);
    row_max.assign(rows, kNegInf);
    row_sum.assign(rows, 0.0f);
  }
};

// One softmax step of one row: scores of keys [lo, hi) of this step become probabilities, all
// others zero; the running maximum, sum and output row are rescaled.
inline void softmax_step(const float* score, uint16_t* probability, int lo, int hi, float scale,
                         float& row_max, float& row_sum, float* out, int dim) {
  const __m512 s = _mm512_set1_ps(scale);
  __m512 values[kKeysAtOnce / 16];
  __m512 top = _mm512_set1_ps(kNegInf);
  for (int v = 0; v < kKeysAtOnce / 16; ++v) {
    const int first = std::clamp(lo - 16 * v, 0, 16), last = std::clamp(hi - 16 * v, 0, 16);
    const __mmask16 seen = static_cast<__mmask16>(((1u << last) - 1) & ~((1u << first) - 1));
    values[v] = _mm512_mask_mul_ps(_mm512_set1_ps(kNegInf), seen, _mm512_loadu_ps(score + 16 * v), s);
    top = _mm512_max_ps(top, values[v]);
  }
  const float new_max = std::max(row_max, _mm512_reduce_max_ps(top));
  if (new_max == kNegInf) {  // nothing seen yet
    std::memset(probability, 0, kKeysAtOnce * sizeof(uint16_t));
    return;
  }
  const __m512 shift = _mm512_set1_ps(new_max);
  __m512 total = _mm512_setzero_ps();
  for (int v = 0; v < kKeysAtOnce / 16; ++v) {
    const __mmask16 seen = _mm512_cmp_ps_mask(values[v], _mm512_set1_ps(kNegInf), _CMP_GT_OQ);
    const __m512 p = _mm512_maskz_mov_ps(seen, exp_ps(_mm512_sub_ps(values[v], shift)));
    total = _mm512_add_ps(total, p);
    store_bf16(probability + 16 * v, p);
  }
  if (new_max != row_max) {
    const __m512 keep =
        row_max == kNegInf ? _mm512_setzero_ps() : exp_ps(_mm512_set1_ps(row_max - new_max));
    row_sum *= _mm512_cvtss_f32(keep);
    for (int d = 0; d < dim; d += 16)
      _mm512_storeu_ps(out + d, _mm512_mul_ps(_mm512_loadu_ps(out + d), keep));
    row_max = new_max;
  }
  row_sum += _mm512_reduce_add_ps(total);
}

}  // namespace

extern "C" {

// Elements of one packed sequence: keys and values each.
int64_t flowprefill_packed_size(int64_t num_keys, int64_t num_kv_heads, int64_t dim) {
  return (num_keys + kKeyBlock - 1) / kKeyBlock * kKeyBlock * num_kv_heads * dim;
}

// Gather one sequence's keys and values from the paged cache [slots, num_kv_heads, dim] and pack
// them: keys as [head][block][dim / 2][64 keys][2], values as [head][block][32 key pairs][dim][2].
void flowprefill_pack_kv(const uint16_t* key_cache, const uint16_t* value_cache,
                         const int64_t* slots, int64_t num_keys, int64_t num_kv_heads, int64_t dim,
                         int64_t key_slot_stride, int64_t value_slot_stride, uint16_t* packed_keys,
                         uint16_t* packed_values) {
  const int64_t num_blocks = (num_keys + kKeyBlock - 1) / kKeyBlock;
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t head = 0; head < num_kv_heads; ++head) {
    for (int64_t block = 0; block < num_blocks; ++block) {
      const size_t offset = static_cast<size_t>(head * num_blocks + block) * kKeyBlock * dim;
      uint16_t* keys = packed_keys + offset;
      uint16_t* values = packed_values + offset;
      for (int i = 0; i < kKeyBlock; ++i) {
        const int64_t position = block * kKeyBlock + i;
        const bool exists = position < num_keys;
        const int64_t slot = exists ? slots[position] : 0;
        const uint16_t* key = key_cache + slot * key_slot_stride + head * dim;
        const uint16_t* value = value_cache + slot * value_slot_stride + head * dim;
        for (int64_t d = 0; d < dim; d += 2) {
          uint16_t* to = keys + (d / 2 * kKeyBlock + i) * 2;
          to[0] = exists ? key[d] : 0;
          to[1] = exists ? key[d + 1] : 0;
        }
        uint16_t* row = values + static_cast<size_t>(i / 2) * dim * 2 + i % 2;
        for (int64_t d = 0; d < dim; ++d) row[2 * d] = exists ? value[d] : 0;
      }
    }
  }
}

// Causal attention of queries at positions [first_position, first_position + num_queries) over
// packed keys of positions [0, num_keys). dim is a multiple of 64. window < 0: no window.
void flowprefill_attend(const uint16_t* query, int64_t query_token_stride, uint16_t* output,
                        int64_t output_token_stride, const uint16_t* packed_keys,
                        const uint16_t* packed_values, int64_t num_heads, int64_t num_kv_heads,
                        int64_t dim, int64_t first_position, int64_t num_queries, int64_t num_keys,
                        float scale, int64_t window) {
  const int64_t group = num_heads / num_kv_heads;
  const int64_t tokens_at_once = std::max<int64_t>(1, kRowsAtOnce / group);
  const int64_t num_query_blocks = (num_queries + tokens_at_once - 1) / tokens_at_once;
  const int64_t num_key_blocks = (num_keys + kKeyBlock - 1) / kKeyBlock;
#pragma omp parallel
  {
    Scratch scratch;
#pragma omp for collapse(2) schedule(dynamic, 1)
    for (int64_t query_block = 0; query_block < num_query_blocks; ++query_block) {
      for (int64_t kv_head = 0; kv_head < num_kv_heads; ++kv_head) {
        const int64_t first_token = query_block * tokens_at_once;
        const int64_t num_tokens = std::min(tokens_at_once, num_queries - first_token);
        const int rows = static_cast<int>(num_tokens * group);
        scratch.reserve(rows, static_cast<int>(dim));
        for (int64_t t = 0; t < num_tokens; ++t)
          std::memcpy(scratch.query.data() + t * group * dim,
                      query + (first_token + t) * query_token_stride + kv_head * group * dim,
                      sizeof(uint16_t) * group * dim);
        const size_t head_offset = static_cast<size_t>(kv_head * num_key_blocks) * kKeyBlock * dim;
        const int64_t lowest = first_position + first_token, highest = lowest + num_tokens - 1;
        const int64_t first_seen = window < 0 ? 0 : std::max<int64_t>(0, lowest - window);
        const int64_t begin = first_seen / kKeysAtOnce * kKeysAtOnce;
        for (int64_t start = begin; start <= highest; start += kKeysAtOnce) {
          const int64_t block = start / kKeyBlock;
          const int num_blocks_now = static_cast<int>(std::min<int64_t>(2, num_key_blocks - block));
          for (int b = 0; b < num_blocks_now; ++b)
            multiply(scratch.query.data(), static_cast<int>(dim), rows,
                     packed_keys + head_offset + static_cast<size_t>(block + b) * kKeyBlock * dim,
                     kKeyBlock, static_cast<int>(dim / 2), scratch.score.data() + b * kKeyBlock,
                     kKeysAtOnce, false);
          for (int row = 0; row < rows; ++row) {
            const int64_t position = lowest + row / group;
            const int64_t from = window < 0 ? 0 : position - window;
            const int lo = static_cast<int>(std::clamp<int64_t>(from - start, 0, kKeysAtOnce));
            const int hi = static_cast<int>(
                std::clamp<int64_t>(position + 1 - start, 0, num_blocks_now * kKeyBlock));
            softmax_step(scratch.score.data() + row * kKeysAtOnce,
                         scratch.probability.data() + row * kKeysAtOnce, lo, hi, scale,
                         scratch.row_max[row], scratch.row_sum[row],
                         scratch.sum.data() + row * dim, static_cast<int>(dim));
          }
          for (int b = 0; b < num_blocks_now; ++b)
            for (int64_t d = 0; d < dim; d += 64)
              multiply(scratch.probability.data() + b * kKeyBlock, kKeysAtOnce, rows,
                       packed_values + head_offset +
                           static_cast<size_t>(block + b) * kKeyBlock * dim + 2 * d,
                       static_cast<int>(dim), kKeyBlock / 2, scratch.sum.data() + d,
                       static_cast<int>(dim), true);
        }
        for (int row = 0; row < rows; ++row) {
          const __m512 factor = _mm512_set1_ps(1.0f / scratch.row_sum[row]);
          uint16_t* to = output + (first_token + row / group) * output_token_stride +
                         (kv_head * group + row % group) * dim;
          const float* from = scratch.sum.data() + row * dim;
          for (int64_t d = 0; d < dim; d += 16)
            store_bf16(to + d, _mm512_mul_ps(_mm512_loadu_ps(from + d), factor));
        }
      }
    }
  }
}

// x [rows, width], residual the same or null (then x + residual replaces residual), out [rows,
// width] = weight * rms_norm(x). width is a multiple of 16. round_first: round before the weight.
void flowprefill_add_rms_norm(const uint16_t* x, uint16_t* residual, const uint16_t* weight,
                              uint16_t* out, int64_t rows, int64_t width, float epsilon,
                              int round_first) {
#pragma omp parallel
  {
    std::vector<float> sum(width);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
      __m512 squares = _mm512_setzero_ps();
      for (int64_t i = 0; i < width; i += 16) {
        __m512 v = load_bf16(x + row * width + i);
        if (residual != nullptr) {
          v = _mm512_add_ps(v, load_bf16(residual + row * width + i));
          store_bf16(residual + row * width + i, v);
        }
        _mm512_storeu_ps(sum.data() + i, v);
        squares = _mm512_fmadd_ps(v, v, squares);
      }
      const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(width);
      const __m512 factor = _mm512_set1_ps(1.0f / __builtin_sqrtf(mean + epsilon));
      for (int64_t i = 0; i < width; i += 16) {
        __m512 v = _mm512_mul_ps(_mm512_loadu_ps(sum.data() + i), factor);
        if (round_first) v = round_bf16(v);
        store_bf16(out + row * width + i, _mm512_mul_ps(v, load_bf16(weight + i)));
      }
    }
  }
}

// x [rows, 2 * width] -> out [rows, width] = silu(first half) * second half. width: multiple of 16.
void flowprefill_silu_and_mul(const uint16_t* x, uint16_t* out, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const uint16_t* gate = x + row * 2 * width;
    for (int64_t i = 0; i < width; i += 16) {
      const __m512 g = load_bf16(gate + i);
      const __m512 denominator =
          _mm512_add_ps(_mm512_set1_ps(1.0f), exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), g)));
      const __m512 activated = round_bf16(_mm512_div_ps(g, denominator));
      store_bf16(out + row * width + i, _mm512_mul_ps(activated, load_bf16(gate + width + i)));
    }
  }
}

// Rotate q and k in place (Neox style, whole head). cos_sin [positions, dim]: cosines, then sines.
// dim is a multiple of 32. Every product is rounded, as torch's bfloat16 operators do.
void flowprefill_rope(const int64_t* positions, uint16_t* query, int64_t query_token_stride,
                      int64_t num_heads, uint16_t* key, int64_t key_token_stride,
                      int64_t num_kv_heads, const uint16_t* cos_sin, int64_t num_tokens,
                      int64_t dim) {
  const int64_t half = dim / 2;
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < num_tokens; ++t) {
    const uint16_t* cosines = cos_sin + positions[t] * dim;
    for (int64_t head = 0; head < num_heads + num_kv_heads; ++head) {
      uint16_t* x = head < num_heads ? query + t * query_token_stride + head * dim
                                     : key + t * key_token_stride + (head - num_heads) * dim;
      for (int64_t i = 0; i < half; i += 16) {
        const __m512 c = load_bf16(cosines + i), s = load_bf16(cosines + half + i);
        const __m512 a = load_bf16(x + i), b = load_bf16(x + half + i);
        store_bf16(x + i, _mm512_sub_ps(round_bf16(_mm512_mul_ps(a, c)),
                                        round_bf16(_mm512_mul_ps(b, s))));
        store_bf16(x + half + i, _mm512_add_ps(round_bf16(_mm512_mul_ps(b, c)),
                                               round_bf16(_mm512_mul_ps(a, s))));
      }
    }
  }
}
}
