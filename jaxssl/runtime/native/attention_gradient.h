// The gradient of attention. Each frame's scores are made again from queries and keys, and nothing of (time, time) is
// kept: a few frames' weights and what was given of them stay in the cache.
#pragma once

#include "attention.h"

// What one head of one utterance attended with and was given a gradient of; all of (time, heads, size).
template <class Kind>
struct Given {
  const typename Kind::Number *queries, *keys, *values, *context;  // of the last, the gradient
  typename Kind::Number *to_queries, *to_keys, *to_values;
  int64_t stride, size, time, seen;  // as of `Head`
};

// Turn a row of scores into weights, and the gradients of the weights into those of the scores:
//   w = softmax(scores), dropped = drop(w), d = drop(given), scores' = w · (d − Σ w · d).
inline void through_softmax(float* scores, float* given, float* kept, int64_t seen, const Drop& drop) {
  const float scale = exponentials(scores, seen);
  Vector sums{};
  for (int64_t j = 0; j < seen; j += kLanes) {
    const Vector weight = load(scores + j) * scale, d = drop.left(load(given + j), j);
    store(kept + j, weight);
    store(scores + j, drop.left(weight, j));
    store(given + j, d);
    sums += weight * d;
  }
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += sums[i];
  for (int64_t j = 0; j < seen; j += kLanes) store(given + j, load(kept + j) * (load(given + j) - sum));
}

// Copy rows of `size` numbers, `stride` apart, as floats.
template <class Number>
void widen(const Number* from, int64_t stride, int64_t rows, int64_t size, float* to) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t d = 0; d < size; ++d) to[i * size + d] = number(from[i * stride + d]);
}

// Lay rows of `size` floats out as panels.
inline void spread(const float* from, int64_t rows, int64_t size, float* to) {
  for (int64_t d = 0; d < size; d += kPanel)
    for (int64_t i = 0; i < rows; ++i, to += kPanel) {
      const int64_t here = std::min(kPanel, size - d);
      std::copy_n(from + i * size + d, here, to);
      std::fill(to + here, to + kPanel, 0.0f);
    }
}

// Lay the transpose of rows of `size` floats out as panels, each of kPanel rows.
inline void spread_across(const float* from, int64_t rows, int64_t size, float* to) {
  for (int64_t j = 0; j < rows; j += kPanel)
    for (int64_t d = 0; d < size; ++d)
      for (int64_t i = 0; i < kPanel; ++i) *to++ = j + i < rows ? from[(j + i) * size + d] : 0.0f;
}

// Add the products of what lies transposed, (depth, rows) in lines of `stride`, and of panels of (depth, size).
inline void add_across(const float* from, int64_t stride, const float* panels, int64_t depth, int64_t rows,
                       int64_t size, float* sums, int64_t wide, bool add) {
  for (int64_t d = 0; d < size; d += kPanel)
    evenly(rows, kRows, [&](int64_t i, int64_t height) {
      tile<Float32>(height, std::min(kPanel, size - d), Columns<Float32>{from + i, stride}, {panels + d * depth, depth},
                    sums + i * wide + d, wide, add, {(const char*)panels, 0});
    });
}

// Write rows of `size` sums to where they belong.
template <class Number>
void give(const float* sums, int64_t wide, int64_t rows, int64_t size, Number* to, int64_t stride) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t d = 0; d < size; d += kLanes) write(to + i * stride + d, load(sums + i * wide + d), size - d);
}

template <class Kind>
void attend_back(const Given<Kind>& head, const Drop& drop) {
  constexpr int64_t kBlock = 48;  // frames at a time
  const int64_t stride = head.stride, size = head.size, seen = head.seen;
  const int64_t padded = upto(seen, kPanel), broad = upto(size, kPanel);
  float* rows = scratch<float>(0, (padded + 2 * kBlock) * size);
  float *queries = rows + padded * size, *given = queries + kBlock * size;
  float* keys = scratch<float>(1, 2 * padded * size + (seen + 2 * kBlock) * broad);
  float *values = keys + padded * size, *keys_along = values + padded * size;
  float *queries_along = keys_along + seen * broad, *given_along = queries_along + kBlock * broad;
  float* sums = scratch<float>(2, 2 * seen * broad + kRows * broad);
  float *of_values = sums + seen * broad, *of_queries = of_values + seen * broad;
  float* weights = scratch<float>(3, (2 * kBlock + 1) * padded);
  float *gradients = weights + kBlock * padded, *kept = gradients + kBlock * padded;
  widen(head.values, stride, seen, size, rows);
  spread_across(rows, seen, size, values);
  widen(head.keys, stride, seen, size, rows);
  spread_across(rows, seen, size, keys);
  spread(rows, seen, size, keys_along);
  evenly(head.time, kBlock, [&](int64_t first, int64_t count) {
    widen(head.queries + first * stride, stride, count, size, queries);
    widen(head.context + first * stride, stride, count, size, given);
    spread(queries, count, size, queries_along);
    spread(given, count, size, given_along);
    evenly(count, kRows, [&](int64_t i, int64_t height) {
      for (int64_t j = 0; j < seen; j += kPanel) {
        const int64_t here = std::min(kPanel, seen - j);
        tile<Float32>(height, here, Rows<Float32>{queries + i * size, size}, {keys + j * size, size},
                      weights + i * padded + j, padded, false, {(const char*)queries, 0});
        tile<Float32>(height, here, Rows<Float32>{given + i * size, size}, {values + j * size, size},
                      gradients + i * padded + j, padded, false, {(const char*)given, 0});
      }
      for (int64_t row = i; row < i + height; ++row)
        through_softmax(weights + row * padded, gradients + row * padded, kept, seen,
                        drop.from((first + row) * head.time));
      for (int64_t d = 0; d < size; d += kPanel)
        tile<Float32>(height, std::min(kPanel, size - d), Rows<Float32>{gradients + i * padded, padded},
                      {keys_along + d * seen, seen}, of_queries + d, broad, false, {(const char*)queries, 0});
      give(of_queries, broad, height, size, head.to_queries + (first + i) * stride, stride);
    });
    add_across(weights, padded, given_along, count, seen, size, of_values, broad, first > 0);
    add_across(gradients, padded, queries_along, count, seen, size, sums, broad, first > 0);
  });
  give(sums, broad, seen, size, head.to_keys, stride);
  give(of_values, broad, seen, size, head.to_values, stride);
  for (int64_t i = seen; i < head.time; ++i) {
    std::fill_n(head.to_keys + i * stride, size, typename Kind::Number{});
    std::fill_n(head.to_values + i * stride, size, typename Kind::Number{});
  }
}
