// A dense map: a product with packed weights, a bias and an activation.
#pragma once

#include "product.h"

enum Activation : int64_t { kLinear, kGelu };

// Write the sums of a panel, `value(row, column)`, plus a bias, of which `columns` count, through an activation.
template <class Value, class Number>
void finish(Value value, int64_t rows, int64_t columns, const float* bias, int64_t activation, Number* to,
            int64_t stride) {
  float shift[kPanel] = {};
  std::copy_n(bias, columns, shift);
  for (int64_t i = 0; i < rows; ++i, to += stride) {
    for (int64_t j = 0; j < columns; j += kLanes) {
      const Vector sum = value(i, j) + load(shift + j);
      write(to + j, activation == kGelu ? gelu(sum) : sum, columns - j);
    }
  }
}

// to (rows, columns) = activation(a · panel + bias) for the first columns of a panel, where `to` lies in rows of
// `stride`.
template <class Kind, class Number>
void map(Rows<Kind> a, Panel<Kind> panel, int64_t rows, int64_t columns, const float* bias, int64_t activation,
         Number* to, int64_t stride, const typename Kind::Number* after) {
  float* sums = scratch<float>(3, kTall * kPanel);
  const auto value = [sums](int64_t i, int64_t j) { return load(sums + i * kPanel + j); };
  multiply<Kind>(a, panel, sums, rows, columns, false, after);
  finish(value, rows, columns, bias, activation, to, stride);
}
