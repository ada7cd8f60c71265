// Attention over a paged KV cache: prefill (causal, any number of query rows of any number of
// sequences) and decode (one row of each sequence). Called through ctypes (native.py).
//
// Keys are read where they lie. A block of keys times a block of queries gives transposed scores
// [key][row]: keys are the operand that is broadcast word by word, from any address, and the
// softmax (FlashAttention's recurrence) runs down the columns, one row of queries per lane. Values
// of a block are rearranged in the first-level cache, once for all rows. Where the processor
// multiplies pairs of bfloat16, a word is a pair and nothing is converted; elsewhere a word is a
// float. Scores and sums are float32; probabilities of pairs are rounded to bfloat16.
//
// Each row's result depends on its own query, keys and values alone, not on what is computed with
// it: key blocks begin at multiples of kKeys positions, and what a row does not see adds zeros.

#include "simd.h"

#include <algorithm>
#include <vector>

namespace flowprefill {
namespace {

constexpr int kKeys = 128;         // keys of one softmax step
constexpr int kRows = 96;          // query rows (tokens x heads of a group) of one task
constexpr int kSpan = 1024;        // keys of one decode task, a multiple of kKeys
constexpr float kHidden = -1e30f;  // score of a key that a row does not see
constexpr float kNothing = -1e20f; // maximum of a row that has seen nothing
constexpr float kLog2E = 1.44269504f;

#if defined(__AVX512BF16__)
template <class T>
constexpr bool kPairs = sizeof(T) == 2;
#else
template <class T>
constexpr bool kPairs = false;
#endif
template <class T>
constexpr int kPerWord = kPairs<T> ? 2 : 1;
template <class T>
constexpr int kDegree = kPairs<T> ? 4 : 6;

template <bool Pairs>
FLOWPREFILL_INLINE Floats multiply_add(Floats sum, word a, Words b) {
  if constexpr (Pairs)
    return multiply_add_pairs(sum, a, b);
  else
    return sum + (Floats)(a - Words{}) * (Floats)b;
}

// c[m][0, V vectors) (+)= sum over k of a[m][k * a_step] b[k * b_step ...].
template <bool Pairs, int M, int V>
void multiply_rows(const word* const* a, int64_t a_step, const word* b, int64_t b_step, int depth,
                   float* c, int64_t c_step, bool accumulate) {
  Floats sums[M][V];
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v)
      sums[m][v] = accumulate ? load(c + m * c_step + v * kLanes) : Floats{};
  for (int k = 0; k < depth; ++k) {
    Words columns[V];
    for (int v = 0; v < V; ++v) columns[v] = load_as<Words>(b + k * b_step + v * kLanes);
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v)
        sums[m][v] = multiply_add<Pairs>(sums[m][v], a[m][k * a_step], columns[v]);
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) store(c + m * c_step + v * kLanes, sums[m][v]);
}

template <bool Pairs, int V>
void multiply_panel(const word* const* a, int64_t a_step, int rows, const word* b, int64_t b_step,
                    int depth, float* c, int64_t c_step, bool accumulate) {
  int m = 0;
  for (; m + 6 <= rows; m += 6)
    multiply_rows<Pairs, 6, V>(a + m, a_step, b, b_step, depth, c + m * c_step, c_step, accumulate);
  switch (rows - m) {
#define FLOWPREFILL_REST(M)                                                                       \
  case M:                                                                                         \
    return multiply_rows<Pairs, M, V>(a + m, a_step, b, b_step, depth, c + m * c_step, c_step,    \
                                      accumulate)
    FLOWPREFILL_REST(5);
    FLOWPREFILL_REST(4);
    FLOWPREFILL_REST(3);
    FLOWPREFILL_REST(2);
    FLOWPREFILL_REST(1);
#undef FLOWPREFILL_REST
    default: return;
  }
}

// The same for any number of columns that is a multiple of kLanes.
template <bool Pairs>
void multiply(const word* const* a, int64_t a_step, int rows, const word* b, int64_t b_step,
              int columns, int depth, float* c, int64_t c_step, bool accumulate) {
  constexpr int kWide = kPanel * kLanes;
  int n = 0;
  for (; n + kWide <= columns; n += kWide)
    multiply_panel<Pairs, kPanel>(a, a_step, rows, b + n, b_step, depth, c + n, c_step, accumulate);
  for (; n + 2 * kLanes <= columns; n += 2 * kLanes)
    multiply_panel<Pairs, 2>(a, a_step, rows, b + n, b_step, depth, c + n, c_step, accumulate);
  for (; n < columns; n += kLanes)
    multiply_panel<Pairs, 1>(a, a_step, rows, b + n, b_step, depth, c + n, c_step, accumulate);
}

template <class T>
struct Cache {
  const T* keys;    // [slots][kv heads][dim]
  const T* values;  // the same
  int64_t key_stride, value_stride;  // of slots
  int dim;
};

template <class T>
FLOWPREFILL_INLINE void widen(const T* from, word* to, int count) {
  for (int i = 0; i < count; i += kLanes)
    store_as(to + i, (Words)load(from + i));
}

// Attention of some query rows of one KV head, block of keys by block of keys.
template <class T>
class Rows {
 public:
  // tokens x group rows, row t * group + h being head h of token t at position first + t.
  void begin(const T* query, int64_t query_stride, int tokens, int group, int dim, int64_t first) {
    count_ = tokens * group;
    padded_ = (count_ + kLanes - 1) / kLanes * kLanes;
    dim_ = dim;
    first_ = first;
    last_ = first + tokens - 1;
    const int words = dim / kPerWord<T>;
    query_.assign(static_cast<size_t>(words) * padded_, 0);
    row_.resize(words);
    position_.assign(padded_, static_cast<int32_t>(first));
    for (int r = 0; r < count_; ++r) {
      const T* from = query + r / group * query_stride + r % group * dim;
      if constexpr (kPairs<T>)
        std::memcpy(row_.data(), from, sizeof(T) * dim);
      else
        widen(from, row_.data(), dim);
      for (int w = 0; w < words; ++w) query_[static_cast<size_t>(w) * padded_ + r] = row_[w];
      position_[r] = static_cast<int32_t>(first + r / group);
    }
    score_.resize(static_cast<size_t>(kKeys) * padded_);
    probability_.resize(static_cast<size_t>(kKeys) * padded_);
    value_.resize(static_cast<size_t>(kKeys) * dim);
    if (!kPairs<T> && sizeof(T) == 2) key_.resize(static_cast<size_t>(kKeys) * dim);
    sum_.assign(static_cast<size_t>(padded_) * dim, 0.0f);
    maximum_.assign(padded_, kNothing);
    total_.assign(padded_, 0.0f);
    keep_.resize(padded_);
  }

  // See keys at positions [begin, end); begin is a multiple of kKeys. window < 0: no window.
  void see(const Cache<T>& cache, const int32_t* slots, int head, int64_t begin, int64_t end,
           float scale, int64_t window) {
    for (int64_t start = begin; start < end; start += kKeys) {
      const int keys = static_cast<int>(std::min<int64_t>(kKeys, end - start));
      const int64_t next = start + kKeys;
      prefetch(cache, slots + next, head, static_cast<int>(std::clamp<int64_t>(end - next, 0, kKeys)));
      score_keys(cache, slots + start, head, keys);
      const bool is_masked = start + keys - 1 > first_ || (window >= 0 && start < last_ - window);
      for (int r = 0; r < padded_; r += kLanes) {
        if (is_masked) hide(r, static_cast<int32_t>(start), keys, window);
        normalise(r, keys, scale * kLog2E);
      }
      rescale_sums();
      add_values(cache, slots + start, head, keys);
    }
  }

  int count() const { return count_; }
  float maximum(int row) const { return maximum_[row]; }
  float total(int row) const { return total_[row]; }
  const float* sum(int row) const { return sum_.data() + static_cast<size_t>(row) * dim_; }

 private:
  // The next block lies scattered: no hardware prefetcher finds it.
  void prefetch(const Cache<T>& cache, const int32_t* slots, int head, int keys) {
    constexpr int kLine = 64 / sizeof(T);
    const int64_t offset = static_cast<int64_t>(head) * dim_;
    for (int k = 0; k < keys; ++k) {
      for (int d = 0; d < dim_; d += kLine) {
        __builtin_prefetch(cache.keys + slots[k] * cache.key_stride + offset + d, 0, 2);
        __builtin_prefetch(cache.values + slots[k] * cache.value_stride + offset + d, 0, 2);
      }
    }
  }

  void score_keys(const Cache<T>& cache, const int32_t* slots, int head, int keys) {
    for (int k = 0; k < keys; ++k) {
      const T* key = cache.keys + slots[k] * cache.key_stride + static_cast<int64_t>(head) * dim_;
      if constexpr (kPairs<T> || sizeof(T) == 4) {
        left_[k] = reinterpret_cast<const word*>(key);
      } else {
        word* wide = key_.data() + static_cast<size_t>(k) * dim_;
        widen(key, wide, dim_);
        left_[k] = wide;
      }
    }
    multiply<kPairs<T>>(left_, 1, keys, query_.data(), padded_, padded_, dim_ / kPerWord<T>,
                        score_.data(), padded_, false);
  }

  void hide(int r, int32_t start, int keys, int64_t window) {
    const Ints position = load_as<Ints>(position_.data() + r);
    const Ints lowest = window < 0 ? Ints{} : position - static_cast<int32_t>(window);
    for (int k = 0; k < keys; ++k) {
      float* score = score_.data() + static_cast<size_t>(k) * padded_ + r;
      const Ints key = (start + k) - Ints{};
      const Ints is_seen = (key <= position) & (key >= lowest);
      store(score, is_seen ? load(score) : splat(kHidden));
    }
  }

  // Scores of kLanes rows become probabilities; maximum, total and the factor of old sums follow.
  void normalise(int r, int keys, float factor) {
    const float* score = score_.data() + r;
    const Floats old = load(maximum_.data() + r);
    Floats tops[4] = {old, old, old, old};
    for (int k = 0; k < keys; ++k)
      tops[k % 4] = max(load(score + static_cast<size_t>(k) * padded_), tops[k % 4]);
    const Floats top = max(max(tops[0], tops[1]), max(tops[2], tops[3]));
    const Floats shift = top * factor;
    const Floats keep = exp2<6>((old - top) * factor);
    Floats total = load(total_.data() + r) * keep;
    for (int k = 0; k < keys; k += kPerWord<T>) {
      word* to = probability_.data() + static_cast<size_t>(k / kPerWord<T>) * padded_ + r;
      const Floats one =
          exp2<kDegree<T>>(load(score + static_cast<size_t>(k) * padded_) * factor - shift);
      total += one;
      if constexpr (kPairs<T>) {
        Floats two{};
        if (k + 1 < keys)
          two = exp2<kDegree<T>>(load(score + static_cast<size_t>(k + 1) * padded_) * factor - shift);
        total += two;
        store_as(to, (((Words)one + 0x8000) >> 16) | (((Words)two + 0x8000) & 0xffff0000u));
      } else {
        store_as(to, (Words)one);
      }
    }
    store(maximum_.data() + r, top);
    store(total_.data() + r, total);
    store(keep_.data() + r, keep);
  }

  void rescale_sums() {
    for (int r = 0; r < count_; ++r) {
      if (keep_[r] == 1.0f) continue;
      float* sum = sum_.data() + static_cast<size_t>(r) * dim_;
      for (int d = 0; d < dim_; d += kLanes) store(sum + d, load(sum + d) * keep_[r]);
    }
  }

  void add_values(const Cache<T>& cache, const int32_t* slots, int head, int keys) {
    const auto value = [&](int k) {
      return cache.values + slots[k] * cache.value_stride + static_cast<int64_t>(head) * dim_;
    };
    const int depth = (keys + kPerWord<T> - 1) / kPerWord<T>;
    for (int w = 0; w < depth; ++w) {
      word* to = value_.data() + static_cast<size_t>(w) * dim_;
      if constexpr (kPairs<T>) {
        const bool is_alone = 2 * w + 1 == keys;
        const T *low = value(2 * w), *high = value(is_alone ? 2 * w : 2 * w + 1);
        for (int d = 0; d < dim_; d += kLanes) {
          const Words ones = __builtin_convertvector(load_as<Halves>(low + d), Words);
          const Words twos = __builtin_convertvector(load_as<Halves>(high + d), Words);
          store_as(to + d, is_alone ? ones : ones | (twos << 16));
        }
      } else {
        widen(value(w), to, dim_);
      }
    }
    for (int r = 0; r < count_; ++r) left_[r] = probability_.data() + r;
    multiply<kPairs<T>>(left_, padded_, count_, value_.data(), dim_, dim_, depth, sum_.data(), dim_,
                        true);
  }

  int count_ = 0, padded_ = 0, dim_ = 0;
  int64_t first_ = 0, last_ = 0;
  const word* left_[1024];  // kKeys, or the query heads of one KV head
  std::vector<uint32_t> query_, row_, key_, probability_, value_;
  std::vector<float> score_, sum_, maximum_, total_, keep_;
  std::vector<int32_t> position_;
};

template <class T>
void write(const float* sum, float factor, T* to, int dim) {
  for (int d = 0; d < dim; d += kLanes) store(to + d, load(sum + d) * factor);
}

struct Shape {
  int num_heads, num_kv_heads, dim;
  float scale;
  int64_t window;

  int group() const { return num_heads / num_kv_heads; }
};

int64_t first_seen(int64_t position, int64_t window) {
  return window < 0 ? 0 : std::max<int64_t>(0, position - window);
}

struct Piece {  // as native.py lays it out
  int64_t table_row, first_row, num_rows, first_position;
};

struct Task {
  const Piece* piece;
  int64_t offset;  // of its first token in the piece
};

// Multiplications below which waking the other threads takes longer than doing their work.
constexpr int64_t kWorthThreads = 1 << 21;

template <class T>
void prefill(const T* query, int64_t query_stride, T* output, int64_t output_stride,
             const Cache<T>& cache, const int32_t* table, int64_t table_stride,
             const Piece* pieces, int64_t num_pieces, const Shape& shape) {
  const int group = shape.group();
  const int tokens_at_once = std::max(1, kRows / group);
  std::vector<Task> tasks;
  int64_t num_pairs = 0;
  for (const Piece* piece = pieces; piece != pieces + num_pieces; ++piece) {
    num_pairs += piece->num_rows * (piece->first_position + piece->num_rows);
    for (int64_t offset = 0; offset < piece->num_rows; offset += tokens_at_once)
      tasks.push_back({piece, offset});
  }
  const int64_t num_tasks = static_cast<int64_t>(tasks.size());
#pragma omp parallel if (2 * num_pairs * shape.num_heads * shape.dim > kWorthThreads)
  {
    Rows<T> rows;
#pragma omp for collapse(2) schedule(dynamic, 1)
    for (int64_t t = num_tasks - 1; t >= 0; --t) {  // those with the most keys first
      for (int head = 0; head < shape.num_kv_heads; ++head) {
        const Piece& piece = *tasks[t].piece;
        const int64_t row = piece.first_row + tasks[t].offset;
        const int64_t first = piece.first_position + tasks[t].offset;
        const int tokens =
            static_cast<int>(std::min<int64_t>(tokens_at_once, piece.num_rows - tasks[t].offset));
        rows.begin(query + row * query_stride + static_cast<int64_t>(head) * group * shape.dim,
                   query_stride, tokens, group, shape.dim, first);
        rows.see(cache, table + piece.table_row * table_stride, head,
                 first_seen(first, shape.window) / kKeys * kKeys, first + tokens, shape.scale,
                 shape.window);
        for (int r = 0; r < rows.count(); ++r)
          write(rows.sum(r), 1.0f / rows.total(r),
                output + (row + r / group) * output_stride +
                    (static_cast<int64_t>(head) * group + r % group) * shape.dim,
                shape.dim);
      }
    }
  }
}

struct Span {
  int64_t sequence, begin, end;
};

template <class T>
void decode(const T* query, int64_t query_stride, T* output, int64_t output_stride,
            const Cache<T>& cache, const int32_t* table, int64_t table_stride,
            const int64_t* table_rows, const int64_t* num_keys, int64_t num_sequences,
            const Shape& shape) {
  const int group = shape.group(), width = shape.dim + 2;  // a sum, its maximum and its total
  std::vector<Span> spans;
  std::vector<int64_t> first_span;
  for (int64_t s = 0; s < num_sequences; ++s) {
    first_span.push_back(static_cast<int64_t>(spans.size()));
    const int64_t begin = first_seen(num_keys[s] - 1, shape.window) / kKeys * kKeys;
    for (int64_t at = begin / kSpan * kSpan; at < num_keys[s]; at += kSpan)
      spans.push_back({s, std::max(at, begin), std::min(at + kSpan, num_keys[s])});
  }
  const int64_t num_spans = static_cast<int64_t>(spans.size());
  first_span.push_back(num_spans);
  std::vector<float> partial(static_cast<size_t>(num_spans) * shape.num_heads * width);
#pragma omp parallel
  {
    Rows<T> rows;
#pragma omp for collapse(2) schedule(dynamic, 1)
    for (int64_t i = 0; i < num_spans; ++i) {
      for (int head = 0; head < shape.num_kv_heads; ++head) {
        const Span& span = spans[i];
        rows.begin(query + span.sequence * query_stride +
                       static_cast<int64_t>(head) * group * shape.dim,
                   query_stride, 1, group, shape.dim, num_keys[span.sequence] - 1);
        rows.see(cache, table + table_rows[span.sequence] * table_stride, head, span.begin,
                 span.end, shape.scale, shape.window);
        for (int r = 0; r < group; ++r) {
          float* to = partial.data() +
                      static_cast<size_t>(i * shape.num_heads + head * group + r) * width;
          std::memcpy(to, rows.sum(r), sizeof(float) * shape.dim);
          to[shape.dim] = rows.maximum(r);
          to[shape.dim + 1] = rows.total(r);
        }
      }
    }
    std::vector<float> sum(shape.dim);
#pragma omp for collapse(2) schedule(static)
    for (int64_t s = 0; s < num_sequences; ++s) {
      for (int head = 0; head < shape.num_heads; ++head) {
        const auto at = [&](int64_t i) {
          return partial.data() + static_cast<size_t>(i * shape.num_heads + head) * width;
        };
        float top = kNothing, total = 0.0f;
        for (int64_t i = first_span[s]; i < first_span[s + 1]; ++i)
          top = std::max(top, at(i)[shape.dim]);
        std::fill(sum.begin(), sum.end(), 0.0f);
        for (int64_t i = first_span[s]; i < first_span[s + 1]; ++i) {
          const float* part = at(i);
          const Floats weight = exp2<6>(splat((part[shape.dim] - top) * shape.scale * kLog2E));
          total += weight[0] * part[shape.dim + 1];
          for (int d = 0; d < shape.dim; d += kLanes)
            store(sum.data() + d, load(sum.data() + d) + weight * load(part + d));
        }
        write(sum.data(), 1.0f / total,
              output + s * output_stride + static_cast<int64_t>(head) * shape.dim, shape.dim);
      }
    }
  }
}

}  // namespace
}  // namespace flowprefill

using flowprefill::bf16;
using flowprefill::Cache;
using flowprefill::Piece;
using flowprefill::Shape;

// Strides are in elements. table [rows][table_stride]: slot of every position of a sequence.
#define FLOWPREFILL_ATTENTION(T, NAME)                                                             \
  void flowprefill_prefill_##NAME(                                                                 \
      const T* query, int64_t query_stride, T* output, int64_t output_stride, const T* keys,       \
      int64_t key_stride, const T* values, int64_t value_stride, const int32_t* table,             \
      int64_t table_stride, const int64_t* pieces, int64_t num_pieces, int64_t num_heads,          \
      int64_t num_kv_heads, int64_t dim, float scale, int64_t window) {                            \
    flowprefill::prefill<T>(                                                                       \
        query, query_stride, output, output_stride,                                                \
        Cache<T>{keys, values, key_stride, value_stride, static_cast<int>(dim)}, table,            \
        table_stride, reinterpret_cast<const Piece*>(pieces), num_pieces,                          \
        Shape{static_cast<int>(num_heads), static_cast<int>(num_kv_heads), static_cast<int>(dim),  \
              scale, window});                                                                     \
  }                                                                                                \
  void flowprefill_decode_##NAME(                                                                  \
      const T* query, int64_t query_stride, T* output, int64_t output_stride, const T* keys,       \
      int64_t key_stride, const T* values, int64_t value_stride, const int32_t* table,             \
      int64_t table_stride, const int64_t* table_rows, const int64_t* num_keys,                    \
      int64_t num_sequences, int64_t num_heads, int64_t num_kv_heads, int64_t dim, float scale,    \
      int64_t window) {                                                                            \
    flowprefill::decode<T>(                                                                        \
        query, query_stride, output, output_stride,                                                \
        Cache<T>{keys, values, key_stride, value_stride, static_cast<int>(dim)}, table,            \
        table_stride, table_rows, num_keys, num_sequences,                                         \
        Shape{static_cast<int>(num_heads), static_cast<int>(num_kv_heads), static_cast<int>(dim),  \
              scale, window});                                                                     \
  }

extern "C" {
FLOWPREFILL_ATTENTION(bf16, bf16)
FLOWPREFILL_ATTENTION(float, f32)
}
