// Copies the keys and values of new tokens to their slots of the cache. Called through ctypes
// (native.py). Any dtype: a row is bytes.

#include <cstdint>
#include <cstring>

// Bytes below which waking the other threads takes longer than doing their work.
constexpr int64_t kWorthThreads = 1 << 18;

extern "C" {

// keys, values [rows][row_bytes] -> cached_keys, cached_values at slots [rows]. Strides are in bytes.
void flowprefill_write_kv(const char* keys, int64_t key_stride, const char* values,
                          int64_t value_stride, char* cached_keys, int64_t cached_key_stride,
                          char* cached_values, int64_t cached_value_stride, const int64_t* slots,
                          int64_t rows, int64_t row_bytes) {
#pragma omp parallel for schedule(static) if (rows * row_bytes > kWorthThreads)
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(cached_keys + slots[row] * cached_key_stride, keys + row * key_stride, row_bytes);
    std::memcpy(cached_values + slots[row] * cached_value_stride, values + row * value_stride,
                row_bytes);
  }
}
}
