// Products of bfloat16 rows with a weight packed once. Called through ctypes (native.py).
//
// The weight lies in panels of kPanel * kLanes outputs, each [inputs / 2][outputs][2 inputs], so that
// it is read once and in order, by a few rows of x whose inputs are broadcast pair by pair. Threads
// take tiles of rows and outputs one by one: a thread that wakes up late, or whose core is busy, does
// less, and little is ever waited for.
//
// Every output is one float32 sum over the inputs in their order, rounded once: a row's result does
// not depend on the rows beside it.

#include "simd.h"

#include <algorithm>

namespace flowprefill {
namespace {

#if defined(__AVX512BF16__)
constexpr int kBlock = 6;  // rows that share a load of the weight: their sums fill the registers
#else
constexpr int kBlock = 4;
#endif
constexpr int kTile = 4 * kBlock;  // rows for which a panel stays in the second-level cache

struct Product {
  const bf16* x;  // [rows][x_stride]
  int64_t x_stride;
  const word* weight;
  const bf16* bias;  // [outputs] or null
  bf16* out;         // [rows][outputs]
  int64_t outputs;
  int64_t pairs;  // of inputs
};

// Rows [row, row + M), outputs [column, column + V vectors).
template <int V, int M>
void multiply_block(const Product& p, const word* panel, int64_t row, int64_t column) {
  Floats sums[M][V] = {};
  const bf16* x = p.x + row * p.x_stride;
  for (int64_t k = 0; k < p.pairs; ++k, panel += V * kLanes) {
    Words weights[V];
    for (int v = 0; v < V; ++v) weights[v] = load_as<Words>(panel + v * kLanes);
    for (int m = 0; m < M; ++m) {
      const word inputs = load_as<word>(x + m * p.x_stride + 2 * k);
      for (int v = 0; v < V; ++v) sums[m][v] = multiply_add_pairs(sums[m][v], inputs, weights[v]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) {
      const int64_t output = column + v * kLanes;
      if (p.bias != nullptr) sums[m][v] += load(p.bias + output);
      store(p.out + (row + m) * p.outputs + output, sums[m][v]);
    }
}

// The same for up to M rows.
template <int V, int M = kBlock>
void multiply_rows(const Product& p, const word* panel, int64_t row, int64_t rows, int64_t column) {
  if (rows == M)
    multiply_block<V, M>(p, panel, row, column);
  else if constexpr (M > 1)
    multiply_rows<V, M - 1>(p, panel, row, rows, column);
}

// Rows [row, end) of one panel, in blocks as even as they can be.
template <int V>
void multiply_panel(const Product& p, const word* panel, int64_t row, int64_t end, int64_t column) {
  for (int64_t blocks = (end - row + kBlock - 1) / kBlock; blocks > 0; --blocks) {
    const int64_t rows = (end - row) / blocks;
    multiply_rows<V>(p, panel, row, rows, column);
    row += rows;
  }
}

// The same for a panel of up to V vectors: the last one may be narrower.
template <int V = kPanel>
void multiply_tile(const Product& p, int64_t vectors, int64_t row, int64_t end, int64_t column) {
  if (vectors >= V)
    multiply_panel<V>(p, p.weight + column * p.pairs, row, end, column);
  else if constexpr (V > 1)
    multiply_tile<V - 1>(p, vectors, row, end, column);
}

void linear(const Product& p, int64_t rows) {
  const int64_t vectors = p.outputs / kLanes;
  const int64_t panels = (vectors + kPanel - 1) / kPanel, tiles = (rows + kTile - 1) / kTile;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (int64_t panel = 0; panel < panels; ++panel)
    for (int64_t tile = 0; tile < tiles; ++tile)
      multiply_tile(p, vectors - panel * kPanel, tile * rows / tiles, (tile + 1) * rows / tiles,
                    panel * kPanel * kLanes);
}

void pack(const bf16* weight, int64_t outputs, int64_t inputs, bf16* packed) {
  constexpr int64_t kWidth = kPanel * kLanes;
#pragma omp parallel for schedule(static)
  for (int64_t first = 0; first < outputs; first += kWidth) {
    const int64_t end = std::min(outputs, first + kWidth);
    bf16* to = packed + first * inputs;
    for (int64_t k = 0; k < inputs; k += 2)
      for (int64_t output = first; output < end; ++output)
        for (int64_t i = k; i < k + 2; ++i) *to++ = weight[output * inputs + i];
  }
}

}  // namespace
}  // namespace flowprefill

using flowprefill::bf16;
using flowprefill::word;

extern "C" {

// weight [outputs][inputs] -> packed, as many elements. outputs a multiple of 16, inputs even.
void flowprefill_pack_linear(const bf16* weight, int64_t outputs, int64_t inputs, bf16* packed) {
  flowprefill::pack(weight, outputs, inputs, packed);
}

// x [rows][inputs], rows x_stride apart, bias [outputs] or null -> out [rows][outputs].
void flowprefill_linear(const bf16* x, int64_t x_stride, const bf16* packed, const bf16* bias,
                        bf16* out, int64_t rows, int64_t inputs, int64_t outputs) {
  flowprefill::linear({x, x_stride, reinterpret_cast<const word*>(packed), bias, out, outputs,
                       inputs / 2},
                      rows);
}
}
