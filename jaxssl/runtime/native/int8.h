// Products of int8 weights with what is quantised as it comes, each row with a scale of its own.
#pragma once

#include <limits>

#include "buffers.h"
#include "linear.h"

namespace {

// Turn windows of `inputs` numbers, `stride` apart, into whole numbers from -127 to 127, 128 added, in lines of `wide`,
// and tell each one's scale.
template <class Number>
void quantise(const Number* x, int64_t stride, int64_t rows, int64_t inputs, int64_t wide, uint8_t* to, float* scales) {
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  const int64_t whole = inputs / kLanes * kLanes;
  for (int64_t i = 0; i < rows; ++i, x += stride, to += wide) {
    Number left[kLanes] = {};  // what is no whole vector
    std::copy(x + whole, x + inputs, left);
    Vector top{}, wrong{};
    for (int64_t k = 0; k < inputs; k += kLanes) {
      const Vector some = read(k < whole ? x + k : left);
      top = larger(top, some < 0 ? -some : some);
      wrong += some * 0.0f;  // no number, where some is none
    }
    float largest = 0, lost = 0;
    for (int l = 0; l < kLanes; ++l) largest = std::max(largest, top[l]), lost += wrong[l];
    const float step = largest / 127.0f, scale = step < std::numeric_limits<float>::min() ? 1.0f : step;
    scales[i] = scale + lost;
    const Vector divisor = splat(scale), inverse = splat(1.0f / scale);
    for (int64_t k = 0; k < inputs; k += kLanes) {
      // A quotient and what it leaves, together as good as a division, which takes three times as long. 1.5 × 2^23
      // brings a whole number into the low bits, rounded to even.
      const Vector some = read(k < whole ? x + k : left), near = some * inverse;
      const Ints bits = (Ints)(near + (some - near * divisor) * inverse + 12582912.0f) + splat(int32_t(128));
      const Bytes bytes = __builtin_convertvector(bits, Bytes);
      std::memcpy(to + k, &bytes, std::min<int64_t>(kLanes, wide - k));
    }
  }
}

// An int8 matrix as it is packed. The first group of a panel holds -128 times the sum of each column, in 32 bits: what
// the 128 too much of the factors adds.
struct Weights {
  const uint8_t* packed;
  int64_t groups;      // of a panel, the first one too
  const float* scale;  // of each column
  int64_t columns;
  int64_t panels() const { return (columns + kPanel - 1) / kPanel; }
  int64_t wide() const { return (groups - 1) * Int8::kGroup; }
  const uint8_t* panel(int64_t j) const { return packed + j * groups * Panel<Int8>::kStride; }
};

inline Weights weights_of(const ffi::Buffer<ffi::S8>& packed, const ffi::Buffer<ffi::F32>& scale) {
  return {reinterpret_cast<const uint8_t*>(packed.typed_data()), packed.dimensions()[2] / Int8::kGroup,
          scale.typed_data(), int64_t(scale.element_count())};
}

// Write activation(numbers · panel j + bias) to the panel's columns of rows that lie `stride` apart; numbers are
// quantised with these scales. What is at `after` is fetched meanwhile.
template <class Number>
void map_panel(const uint8_t* numbers, const float* scales, int64_t rows, const Weights& weights, int64_t j,
               const float* bias, int64_t activation, Number* to, int64_t stride, const uint8_t* after) {
  const int64_t here = std::min(kPanel, weights.columns - j * kPanel), wide = weights.wide();
  const uint8_t* panel = weights.panel(j);
  int32_t* sums = scratch<int32_t>(2, kTall * kPanel);
  float gains[kPanel] = {};
  std::copy_n(weights.scale + j * kPanel, here, gains);
  for (int64_t i = 0; i < rows; ++i) std::memcpy(sums + i * kPanel, panel, kPanel * sizeof(int32_t));
  multiply<Int8>({numbers, wide}, {panel + Panel<Int8>::kStride, weights.groups - 1}, sums, rows, here, true, after);
  const auto value = [&](int64_t i, int64_t c) {
    return __builtin_convertvector(load(sums + i * kPanel + c), Vector) * splat(scales[i]) * load(gains + c);
  };
  finish(value, rows, here, bias + j * kPanel, activation, to + j * kPanel, stride);
}

// y (batch, rows, outputs) = activation(windows of x · weights + bias) for x of (batch, numbers), whose windows of
// `inputs` numbers begin `stride` apart, and weights in int8 with a scale each column.
template <class Kind>
ffi::Error ProductInt8(ffi::ThreadPool pool, Buffer<Kind> x, ffi::Buffer<ffi::S8> packed, ffi::Buffer<ffi::F32> scale,
                       ffi::Buffer<ffi::F32> bias, Result<Kind> y, int64_t inputs, int64_t stride, int64_t activation) {
  const auto shape = y->dimensions();
  const int64_t batch = shape[0], each = shape[1], outputs = shape[2], rows = batch * each;
  if (rows * outputs == 0) return ffi::Error::Success();
  const Weights weights = weights_of(packed, scale);
  const int64_t length = x.element_count() / batch, wide = weights.wide();
  const int64_t panels = weights.panels(), ahead = threads(pool), pieces = pieces_of_rows<Int8>(rows, panels, ahead);
  const auto* in = x.typed_data();
  const float* shift = bias.typed_data();
  auto* out = y->typed_data();
  const auto bytes = memory<uint8_t>(rows * wide);
  const auto gains = memory<float>(rows);
  uint8_t* numbers = bytes.get();
  float* scales = gains.get();
  constexpr int64_t kShare = 8;  // rows that are worth another thread
  const int64_t parts = std::min(4 * threads(pool), (each + kShare - 1) / kShare);
  share(pool, batch * parts, [=](int64_t task) {
    const int64_t part = task % parts, row = task / parts, begin = each * part / parts, at = row * each + begin;
    quantise(in + row * length + begin * stride, stride, each * (part + 1) / parts - begin, inputs, wide,
             numbers + at * wide, scales + at);
  });
  share(pool, pieces * panels, [=](int64_t task) {
    const int64_t j = task % panels, piece = task / panels;
    const int64_t begin = rows * piece / pieces, count = rows * (piece + 1) / pieces - begin;
    map_panel(numbers + begin * wide, scales + begin, count, weights, j, shift, activation, out + begin * outputs,
              outputs, weights.panel(j + ahead < panels ? j + ahead : j));
  });
  return ffi::Error::Success();
}

// y (rows, outputs) = activation(x · down · up + bias), x and the middle quantised as they come, a few rows of which
// stay in the cache.
template <class Kind>
ffi::Error FactoredInt8(ffi::ThreadPool pool, Buffer<Kind> x, ffi::Buffer<ffi::S8> down,
                        ffi::Buffer<ffi::F32> down_scale, ffi::Buffer<ffi::S8> up, ffi::Buffer<ffi::F32> up_scale,
                        ffi::Buffer<ffi::F32> bias, Result<Kind> y, int64_t activation) {
  using Number = typename Kind::Number;
  constexpr int64_t kShare = 24;  // rows that are worth another thread
  if (y->element_count() == 0) return ffi::Error::Success();
  const Weights first = weights_of(down, down_scale), second = weights_of(up, up_scale);
  const int64_t outputs = second.columns, rank = first.columns, rows = y->element_count() / outputs;
  const int64_t inputs = x.element_count() / rows, tasks = std::min(threads(pool), (rows + kShare - 1) / kShare);
  const auto* in = x.typed_data();
  const float* shift = bias.typed_data();
  auto* out = y->typed_data();
  share(pool, tasks, [=](int64_t task) {
    const int64_t begin = rows * task / tasks, end = rows * (task + 1) / tasks;
    const int64_t widest = std::max(first.wide(), second.wide());
    uint8_t* numbers = scratch<uint8_t>(1, kTall * widest);
    Number* middle = scratch<Number>(0, kTall * rank);
    const std::vector<float> nothing(rank);
    float scales[kTall];
    evenly(end - begin, kTall, [&](int64_t offset, int64_t count) {
      const auto mapped = [&](const Number* from, int64_t fan_in, const Weights& weights, const float* added,
                              int64_t last, Number* to, const uint8_t* after) {
        quantise(from, fan_in, count, fan_in, weights.wide(), numbers, scales);
        for (int64_t j = 0, panels = weights.panels(); j < panels; ++j)
          map_panel(numbers, scales, count, weights, j, added, last, to, weights.columns,
                    j + 1 < panels ? weights.panel(j + 1) : after);
      };
      const int64_t row = begin + offset;
      mapped(in + row * inputs, inputs, first, nothing.data(), kLinear, middle, second.packed);
      mapped(middle, rank, second, shift, activation, out + row * outputs, first.packed);
    });
  });
  return ffi::Error::Success();
}

template <class Kind>
auto int8_of() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Buffer<Kind>>()
      .template Arg<ffi::Buffer<ffi::S8>>()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Ret<Buffer<Kind>>()
      .template Attr<int64_t>("inputs")
      .template Attr<int64_t>("stride")
      .template Attr<int64_t>("activation");
}

template <class Kind>
auto factored_int8_of() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Buffer<Kind>>()
      .template Arg<ffi::Buffer<ffi::S8>>()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Arg<ffi::Buffer<ffi::S8>>()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Ret<Buffer<Kind>>()
      .template Attr<int64_t>("activation");
}

}  // namespace
