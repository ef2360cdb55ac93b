// Dense maps whose weights training changes: they are packed on every run, and have gradients.
#pragma once

#include <cstdlib>

#include "map.h"

struct Free {
  void operator()(void* at) const { std::free(at); }
};

// Memory for a call, at the beginning of a cache line. Tasks are given bare pointers: one that a busy thread has yet to
// find finished must not hold it.
template <class Number>
std::unique_ptr<Number[], Free> memory(int64_t size) {
  const int64_t bytes = upto(size * sizeof(Number), 64);
  return std::unique_ptr<Number[], Free>(static_cast<Number*>(std::aligned_alloc(64, std::max<int64_t>(64, bytes))));
}

// Two rows' numbers of a column beside each other, as bfloat16.
inline Words paired(const uint16_t* even, const uint16_t* odd) {
  typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
  Halves low, high;
  std::memcpy(&low, even, sizeof(low));
  std::memcpy(&high, odd, sizeof(high));
  return __builtin_convertvector(low, Words) | __builtin_convertvector(high, Words) << 16;
}
inline Words paired(const float* even, const float* odd) {
  return rounded(load(even)) >> 16 | (rounded(load(odd)) & 0xffff0000u);
}

// From a row that is read to one that is fetched: rows lie too far apart for the processor to guess.
constexpr int64_t kSoon = 16;

// Lay rows of `columns` numbers, `stride` apart, out as groups of `wide` columns: a panel has kPanel.
inline void lay(const float* from, int64_t stride, int64_t rows, int64_t columns, float* to, int64_t wide) {
  for (int64_t k = 0; k < rows; ++k, from += stride, to += wide) {
    for (int64_t j = 0; j < columns; j += 16) __builtin_prefetch(from + kSoon * stride + j);
    std::copy_n(from, columns, to);
    std::fill(to + columns, to + wide, 0.0f);
  }
}
template <class Number>
void lay(const Number* from, int64_t stride, int64_t rows, int64_t columns, uint16_t* to, int64_t wide) {
  const Number nothing[kLanes] = {};
  for (int64_t k = 0; k < rows; k += 2, from += 2 * stride, to += 2 * wide)
    for (int64_t j = 0; j < wide; j += kLanes) {
      __builtin_prefetch(from + kSoon * stride + j);
      __builtin_prefetch(from + (kSoon + 1) * stride + j);
      Number even[kLanes] = {}, odd[kLanes] = {};
      const int64_t here = std::min<int64_t>(kLanes, columns - j);
      const bool whole = here == kLanes;
      if (!whole && here > 0) std::copy_n(from + j, here, even);
      if (!whole && here > 0 && k + 1 < rows) std::copy_n(from + stride + j, here, odd);
      const Words pairs = paired(whole ? from + j : even, !whole ? odd : k + 1 < rows ? from + stride + j : nothing);
      std::memcpy(to + 2 * j, &pairs, sizeof(pairs));
    }
}

// Lay the transpose of `columns` rows of `depth` floats, `stride` apart, out as a panel.
inline void lay_across(const float* from, int64_t stride, int64_t depth, int64_t columns, float* to) {
  constexpr int64_t kNear = 16;
  if (columns < kPanel) std::fill_n(to, depth * kPanel, 0.0f);
  for (int64_t k = 0; k < depth; k += kNear)
    for (int64_t j = 0; j < columns; ++j)
      for (int64_t l = k; l < std::min(depth, k + kNear); ++l) to[l * kPanel + j] = from[j * stride + l];
}
inline void lay_across(const float* from, int64_t stride, int64_t depth, int64_t columns, uint16_t* to) {
  std::fill_n(to, upto(depth, 2) * kPanel, uint16_t{});
  for (int64_t j = 0; j < columns; ++j, from += stride, to += 2)
    for (int64_t k = 0; k < depth; k += kLanes) {
      uint16_t halves[kLanes] = {};
      float floats[kLanes] = {};
      std::copy_n(from + k, std::min<int64_t>(kLanes, depth - k), floats);
      write(halves, load(floats), kLanes);
      for (int64_t l = 0; l < kLanes && k + l < depth; l += 2)
        std::memcpy(to + (k + l) * kPanel, halves + l, 2 * sizeof(uint16_t));
    }
}

// Words of one float, or of a column's two bfloat16 in rows `stride` apart.
inline Words words(const float* from, int64_t) { return (Words)load(from); }
inline Words words(const uint16_t* from, int64_t stride) { return paired(from, from + stride); }

// Lay the transpose of rows of `columns` numbers, `stride` apart, out in lines of `wide`, filled up with zeros.
template <class Number>
void transpose(const Number* from, int64_t stride, int64_t rows, int64_t columns, Number* to, int64_t wide) {
  constexpr int64_t kWord = 4 / sizeof(Number), kDeep = kLanes * kWord;
  for (int64_t k = 0; k < wide; k += kDeep)
    for (int64_t j = 0; j < columns; j += kLanes) {
      const int64_t here = std::min<int64_t>(kLanes, columns - j), deep = std::min<int64_t>(kDeep, rows - k);
      const Number* at = from + k * stride + j;
      Number edge[kDeep * kLanes];
      if (here < kLanes || deep < kDeep) {
        std::fill_n(edge, kDeep * kLanes, Number{});
        for (int64_t l = 0; l < deep; ++l) std::copy_n(at + l * stride, here, edge + l * kLanes);
        at = edge;
      }
      const int64_t step = at == edge ? kLanes : stride;
      uint32_t square[kLanes][kLanes], line[kLanes];
      for (int64_t l = 0; l < kLanes; ++l) {
        for (int64_t m = 0; m < kWord; ++m) __builtin_prefetch(from + (k + kDeep + l * kWord + m) * stride + j);
        const Words all = words(at + l * kWord * step, step);
        std::memcpy(square[l], &all, sizeof(all));
      }
      for (int64_t i = 0; i < here; ++i) {
        for (int64_t l = 0; l < kLanes; ++l) line[l] = square[l][i];
        if (wide - k >= kDeep)
          std::memcpy(to + (j + i) * wide + k, line, sizeof(line));  // one store
        else
          std::memcpy(to + (j + i) * wide + k, line, (wide - k) * sizeof(Number));
      }
    }
}

// Add the first `columns` numbers of rows that lie `stride` apart.
template <class Number>
void add_rows(const Number* from, int64_t stride, int64_t rows, int64_t columns, float* to) {
  float sums[kPanel] = {};
  for (int64_t i = 0; i < rows; ++i, from += stride)
    for (int64_t j = 0; j < columns; ++j) sums[j] += number(from[j]);
  for (int64_t j = 0; j < columns; ++j) to[j] += sums[j];
}
