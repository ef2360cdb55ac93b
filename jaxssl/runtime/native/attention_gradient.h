// The gradient of attention. Each frame's scores are made again from queries and keys, and nothing of (time, time) is
// kept: a few frames' weights and what was given of them stay in the cache. In bfloat16 both are rounded before
// they are multiplied again; the softmax and sums are float32.
#pragma once

#include <utility>

#include "attention.h"

// What one head of one utterance attended with and was given a gradient of; all of (time, heads, size).
template <class Kind>
struct Given {
  const typename Kind::Number *queries, *keys, *values, *context;  // of the last, the gradient
  typename Kind::Number *to_queries, *to_keys, *to_values;
  int64_t stride, size, time, seen;  // as of `Head`
};

// What comes of a few frames, row by row.
template <class Number>
struct Slopes {
  Number *weights, *gradients;  // as they were dropped; of the scores
};

// Turn a row of scores into weights, and the gradients of the weights into those of the scores:
//   w = softmax(scores), dropped = drop(w), d = drop(given), scores' = w · (d − Σ w · d).
template <class Number>
void through_softmax(float* scores, float* given, float* left, int64_t seen, Drop drop, Slopes<Number> to) {
  const float largest = largest_of(scores, seen);
  Vector sums{}, dots{};
  for (int64_t j = 0; j < seen; j += kLanes) {
    const Vector weight = exponential(load(scores + j) - largest), d = drop.left(load(given + j), j);
    store(scores + j, weight);
    store(left + j, drop.left(weight, j));
    store(given + j, d);
    sums += weight;
    dots += weight * d;
  }
  const float scale = 1 / total(sums), dot = total(dots) * scale;
  for (int64_t j = 0; j < seen; j += kLanes) {
    write(to.weights + j, load(left + j) * scale, kLanes);
    write(to.gradients + j, load(scores + j) * scale * (load(given + j) - dot), kLanes);
  }
}

// sums += what lies transposed, groups of `line` rows beside each other, times panels of (depth, size).
template <class Kind>
void add_across(const typename Kind::Number* from, int64_t line, const typename Kind::Number* panels, int64_t depth,
                int64_t rows, int64_t size, float* sums, int64_t wide, bool add) {
  for (int64_t d = 0; d < size; d += kPanel)
    evenly(rows, kRows, [&](int64_t i, int64_t height) {
      tile<Kind>(height, std::min(kPanel, size - d), Columns<Kind>{from + i * Kind::kGroup, line * Kind::kGroup},
                 {panels + d * depth, depth / Kind::kGroup}, sums + i * wide + d, wide, add, {(const char*)panels, 0});
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
  using Number = typename Kind::Number;
  constexpr int64_t kBlock = 48 * Kind::kGroup;  // frames at a time
  const int64_t stride = head.stride, size = head.size, seen = head.seen, deep = upto(size, Kind::kGroup);
  const int64_t padded = upto(seen, kPanel), broad = upto(size, kPanel), many = upto(seen, Kind::kGroup);
  const int64_t line = padded + 16;  // so that what lies beside each other falls on different sets of the cache
  Number* keys = scratch<Number>(0, 2 * padded * deep + (many + 2 * kBlock) * broad + 2 * kRows * (deep + line));
  Number *values = keys + padded * deep, *keys_along = values + padded * deep;
  Number *queries_along = keys_along + many * broad, *given_along = queries_along + kBlock * broad;
  Number *queries = given_along + kBlock * broad, *given = queries + kRows * deep, *rows = given + kRows * deep;
  Number* weights = scratch<Number>(1, 2 * kBlock * line);
  Number* gradients = weights + kBlock * line;
  float* sums = scratch<float>(2, 2 * seen * broad + kRows * broad);
  float *of_values = sums + seen * broad, *of_queries = of_values + seen * broad;
  float* scores = scratch<float>(3, (2 * kRows + 1) * line);
  float *slopes = scores + kRows * line, *left = slopes + kRows * line;
  pack_across<Kind>(head.keys, stride, seen, size, keys);
  pack_across<Kind>(head.values, stride, seen, size, values);
  pack_along<Kind>(head.keys, stride, seen, size, keys_along);
  std::fill_n(queries, 2 * kRows * (deep + line), Number{});
  for (int64_t first = 0; first < head.time; first += kBlock) {
    const int64_t count = std::min(kBlock, head.time - first), depth = upto(count, Kind::kGroup);
    const Number *of = head.queries + first * stride, *by = head.context + first * stride;
    pack_along<Kind>(of, stride, count, size, queries_along);
    pack_along<Kind>(by, stride, count, size, given_along);
    for (int64_t i = 0; i < count; i += kRows) {
      const int64_t height = std::min<int64_t>(kRows, count - i);
      // A group of one row lies as rows do; others are laid beside each other.
      const Slopes<Number> to = Kind::kGroup == 1 ? Slopes<Number>{weights + i * line, gradients + i * line}
                                                  : Slopes<Number>{rows, rows + kRows * line};
      copy_rows(of + i * stride, stride, height, size, queries, deep);
      copy_rows(by + i * stride, stride, height, size, given, deep);
      for (int64_t j = 0; j < seen; j += kPanel) {
        const int64_t here = std::min(kPanel, seen - j), groups = deep / Kind::kGroup;
        tile<Kind>(height, here, Rows<Kind>{queries, deep}, {keys + j * deep, groups}, scores + j, line, false,
                   {(const char*)queries, 0});
        tile<Kind>(height, here, Rows<Kind>{given, deep}, {values + j * deep, groups}, slopes + j, line, false,
                   {(const char*)given, 0});
      }
      for (int64_t row = 0; row < height; ++row)
        through_softmax<Number>(scores + row * line, slopes + row * line, left, seen,
                                drop.from((first + i + row) * head.time),
                                {to.weights + row * line, to.gradients + row * line});
      for (int64_t d = 0; d < size; d += kPanel)
        tile<Kind>(height, std::min(kPanel, size - d), Rows<Kind>{to.gradients, line},
                   {keys_along + d * many, many / Kind::kGroup}, of_queries + d, broad, false,
                   {(const char*)queries, 0});
      give(of_queries, broad, height, size, head.to_queries + (first + i) * stride, stride);
      if (Kind::kGroup == 1) continue;
      lay(to.weights, line, height, seen, weights + i * line, line);
      lay(to.gradients, line, height, seen, gradients + i * line, line);
    }
    add_across<Kind>(weights, line, given_along, depth, seen, size, of_values, broad, first > 0);
    add_across<Kind>(gradients, line, queries_along, depth, seen, size, sums, broad, first > 0);
  }
  for (const auto& [from, to] : {std::pair(sums, head.to_keys), std::pair(of_values, head.to_values)}) {
    give(from, broad, seen, size, to, stride);
    for (int64_t i = seen; i < head.time; ++i) std::fill_n(to + i * stride, size, Number{});
  }
}

// The same of numbers that are widened on every use: they are so once, and what comes of them is rounded in the end.
template <class Kind>
void attend_back_widened(const Given<Kind>& head, const Drop& drop) {
  const int64_t all = head.time * head.size, size = head.size, time = head.time;
  const auto wider = memory<float>(7 * all + kLanes);
  float* at = wider.get();
  for (const auto* from : {head.queries, head.keys, head.values, head.context}) {
    copy_rows(from, head.stride, time, size, at, size);
    at += all;
  }
  const float* first = wider.get();
  attend_back(Given<Float32>{first, first + all, first + 2 * all, first + 3 * all, at, at + all, at + 2 * all, size,
                             size, time, head.seen},
              drop);
  for (auto* to : {head.to_queries, head.to_keys, head.to_values}) {
    give(at, size, time, size, to, head.stride);
    at += all;
  }
}
