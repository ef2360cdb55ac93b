// What training needs of kernels: gradients, and products with weights that change.
#pragma once

#include "attention_gradient.h"
#include "buffers.h"
#include "linear.h"

namespace {

// The gradients of q, k and v, given that of the context; all of (batch, time, heads, size). The rest is as of
// `Attention`, and what it dropped is dropped again.
template <class Kind>
ffi::Error AttentionGradient(ffi::ThreadPool pool, Buffer<Kind> q, Buffer<Kind> k, Buffer<Kind> v,
                             ffi::Buffer<ffi::S32> lengths, ffi::Buffer<ffi::U32> words, Buffer<Kind> context,
                             Result<Kind> to_q, Result<Kind> to_k, Result<Kind> to_v, int64_t threshold, float scale,
                             bool together) {
  const auto shape = q.dimensions();
  const int64_t batch = shape[0], time = shape[1], heads = shape[2], size = shape[3];
  const auto *queries = q.typed_data(), *keys = k.typed_data(), *values = v.typed_data(), *given = context.typed_data();
  auto *to_queries = to_q->typed_data(), *to_keys = to_k->typed_data(), *to_values = to_v->typed_data();
  const Drops drops{words.typed_data(), uint32_t(threshold), scale, together ? time * time : 0};
  const int32_t* valid = lengths.typed_data();
  share(pool, batch * heads, [=](int64_t task) {
    const int64_t row = task / heads, at = row * time * heads * size + task % heads * size;
    const int64_t seen = valid[row] > 0 ? valid[row] : time;
    const Given<Kind> head{queries + at, keys + at,      values + at,  given + at, to_queries + at,
                           to_keys + at, to_values + at, heads * size, size,       time,
                           seen};
    if constexpr (std::is_same_v<Multiplied<Kind>, Kind>)
      attend_back(head, drops.of(task));
    else
      attend_back_widened(head, drops.of(task));
  });
  return ffi::Error::Success();
}

template <class Kind>
auto attention_gradient_of() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .template Arg<Buffer<Kind>>()
      .template Arg<Buffer<Kind>>()
      .template Arg<Buffer<Kind>>()
      .template Arg<ffi::Buffer<ffi::S32>>()
      .template Arg<ffi::Buffer<ffi::U32>>()
      .template Arg<Buffer<Kind>>()
      .template Ret<Buffer<Kind>>()
      .template Ret<Buffer<Kind>>()
      .template Ret<Buffer<Kind>>()
      .template Attr<int64_t>("threshold")
      .template Attr<float>("scale")
      .template Attr<bool>("together");
}

// y (batch, rows, outputs) = convolution of x (batch, time, inputs) and weights (taps, inputs, outputs), which are in
// float32 and which nobody packed, and the bias.
template <class Kind>
ffi::Error Convolution(ffi::ThreadPool pool, Buffer<Kind> x, ffi::Buffer<ffi::F32> weights, ffi::Buffer<ffi::F32> bias,
                       Result<Kind> y, int64_t stride) {
  using Number = typename Kind::Number;
  if (y->element_count() == 0) return ffi::Error::Success();
  const int64_t batch = y->dimensions()[0], rows = y->dimensions()[1], outputs = bias.element_count();
  const int64_t inputs = weights.element_count() / outputs, length = x.element_count() / batch;  // of a window, a row
  const int64_t step = stride * x.dimensions()[2];
  const int64_t groups = (inputs + Kind::kGroup - 1) / Kind::kGroup, panel = groups * Panel<Kind>::kStride;
  const int64_t panels = (outputs + kPanel - 1) / kPanel, pieces = (rows + kTall - 1) / kTall, ahead = threads(pool);
  const auto packed = memory<Number>(panels * panel);
  const auto* in = x.typed_data();
  auto* all = packed.get();
  const float *given = weights.typed_data(), *shift = bias.typed_data();
  auto* out = y->typed_data();
  share(pool, panels, [=](int64_t j) {
    const int64_t first = j * kPanel, here = std::min(kPanel, outputs - first);
    lay(given + first, outputs, inputs, here, all + j * panel, kPanel);
  });
  share(pool, batch * pieces * panels, [=](int64_t task) {
    const int64_t j = task % panels, piece = task / panels % pieces, row = task / panels / pieces;
    const int64_t begin = rows * piece / pieces, end = rows * (piece + 1) / pieces;
    const auto* mine = all + j * panel;
    map<Kind>({in + row * length + begin * step, step}, {mine, groups}, end - begin,
              std::min(kPanel, outputs - j * kPanel), shift + j * kPanel, kLinear,
              out + (row * rows + begin) * outputs + j * kPanel, outputs,
              j + ahead < panels ? mine + ahead * panel : mine);
  });
  return ffi::Error::Success();
}

// The gradients of weights and bias, for x and the gradient of y: products of x transposed and of y, a block of frames
// at a time, whose copies for that stay in the last cache.
template <class Kind>
ffi::Error KernelGradient(ffi::ThreadPool pool, Buffer<Kind> x, Buffer<Kind> y, ffi::ResultBuffer<ffi::F32> weights,
                          ffi::ResultBuffer<ffi::F32> bias, int64_t stride) {
  using Number = typename Kind::Number;
  constexpr int64_t kBlock = 2 * kBytes / (kPanel * sizeof(Number));              // frames
  constexpr int64_t kWhole = Kind::kTiles ? kDeep * Kind::kGroup : Kind::kGroup;  // that their number is a multiple of
  if (weights->element_count() == 0) return ffi::Error::Success();
  const int64_t outputs = bias->element_count(), inputs = weights->element_count() / outputs;  // of a window
  const int64_t batch = y.dimensions()[0], rows = y.dimensions()[1], pieces = (inputs + kTall - 1) / kTall;
  const int64_t panels = (outputs + kPanel - 1) / kPanel, step = stride * x.dimensions()[2];
  const int64_t length = x.dimensions()[1] * x.dimensions()[2], most = upto(std::min(rows, kBlock), kWhole);
  const auto packed = memory<Number>((inputs + panels * kPanel) * most);
  Number *right = packed.get(), *left = right + panels * kPanel * most;
  float *to_weights = weights->typed_data(), *to_bias = bias->typed_data();
  if (batch * rows == 0) std::fill_n(to_weights, inputs * outputs, 0.0f);
  std::fill_n(to_bias, outputs, 0.0f);
  // Pieces of whole tiles.
  const auto piece = [=](int64_t i) { return std::min(inputs, upto(inputs * i / pieces, kRows)); };
  for (int64_t k = 0; k < batch * rows; k += std::min(kBlock, rows - k % rows)) {
    const int64_t count = std::min(kBlock, rows - k % rows), depth = upto(count, kWhole);
    const auto* in = x.typed_data() + k / rows * length + k % rows * step;
    const auto* given = y.typed_data() + k * outputs;
    share(pool, pieces + panels, [=](int64_t task) {
      if (task < pieces) {
        const int64_t begin = piece(task), end = piece(task + 1);
        return transpose(in + begin, step, count, end - begin, left + begin * depth, depth);
      }
      const int64_t first = (task - pieces) * kPanel, here = std::min(kPanel, outputs - first);
      Number* panel = right + first * depth;
      lay(given + first, outputs, count, here, panel, kPanel);
      std::fill(panel + upto(count, Kind::kGroup) * kPanel, panel + depth * kPanel, Number{});
      add_rows(given + first, outputs, count, here, to_bias + first);
    });
    share(pool, pieces * panels, [=](int64_t task) {
      const int64_t begin = piece(task / panels), end = piece(task / panels + 1);
      const int64_t first = task % panels * kPanel, here = std::min(kPanel, outputs - first);
      const auto* panel = right + first * depth;
      float* sums = scratch<float>(0, kTall * kPanel);
      multiply<Kind>({left + begin * depth, depth}, {panel, depth / Kind::kGroup}, sums, end - begin, here, false,
                     panel);
      for (int64_t i = begin; i < end; ++i, sums += kPanel) {
        float* to = to_weights + i * outputs + first;
        for (int64_t j = 0; j < here; ++j) to[j] = k > 0 ? to[j] + sums[j] : sums[j];
      }
    });
  }
  return ffi::Error::Success();
}

// The gradient of x, for weights and the gradient of y. Frames whose number leaves p, divided by `stride`, hear the
// taps p, p + stride and so on, of outputs that lie beside each other: each such set of frames is a product with
// windows of outputs.
template <class Kind>
ffi::Error FramesGradient(ffi::ThreadPool pool, Buffer<Kind> y, ffi::Buffer<ffi::F32> weights, Result<Kind> x,
                          int64_t stride) {
  using Number = typename Kind::Number;
  if (x->element_count() == 0) return ffi::Error::Success();
  const int64_t taps = weights.dimensions()[0], inputs = weights.dimensions()[1], outputs = weights.dimensions()[2];
  const int64_t batch = x->dimensions()[0], time = x->dimensions()[1], rows = y.dimensions()[1];
  const int64_t groups = (outputs + Kind::kGroup - 1) / Kind::kGroup, tap = groups * Panel<Kind>::kStride;
  const int64_t panels = (inputs + kPanel - 1) / kPanel, panel = (taps + stride - 1) / stride * tap;
  const int64_t pieces = ((time + stride - 1) / stride + kTall - 1) / kTall;
  const auto packed = memory<Number>(stride * panels * panel);
  auto* all = packed.get();
  const auto* given = y.typed_data();
  const float* kernel = weights.typed_data();
  auto* out = x->typed_data();
  const auto heard = [=](int64_t p) { return p < taps ? (taps - p + stride - 1) / stride : 0; };
  share(pool, stride * panels, [=](int64_t task) {
    const int64_t p = task / panels, first = task % panels * kPanel, here = std::min(kPanel, inputs - first);
    for (int64_t m = 0; m < heard(p); ++m)
      lay_across(kernel + ((p + (heard(p) - 1 - m) * stride) * inputs + first) * outputs, outputs, outputs, here,
                 all + task * panel + m * tap);
  });
  share(pool, batch * stride * pieces * panels, [=](int64_t task) {
    const int64_t j = task % panels, piece = task / panels % pieces, p = task / panels / pieces % stride;
    const int64_t row = task / panels / pieces / stride, here = std::min(kPanel, inputs - j * kPanel);
    const int64_t count = (time - p + stride - 1) / stride, many = heard(p);
    const int64_t begin = count * piece / pieces, end = count * (piece + 1) / pieces;
    const auto* from = given + row * rows * outputs;
    auto* to = out + (row * time + p) * inputs + j * kPanel;
    const auto* mine = all + (p * panels + j) * panel;
    const float nothing[kPanel] = {};
    const auto product = [&](const Number* windows, int64_t first, int64_t height) {
      map<Kind>({windows, outputs}, {mine, many * groups}, height, here, nothing, kLinear, to + first * stride * inputs,
                stride * inputs, mine);
    };
    const int64_t whole = std::clamp(many - 1, begin, end), last = std::clamp(rows, whole, end);
    if (many > 0 && last > whole) product(from + (whole - many + 1) * outputs, whole, last - whole);
    Number* window = scratch<Number>(0, (many + 1) * outputs);
    for (int64_t t = begin; t < end; ++t) {
      if (many > 0 && t >= whole && t < last) continue;
      if (many == 0) {
        std::fill_n(to + t * stride * inputs, here, Number{});
        continue;
      }
      std::fill_n(window, many * outputs, Number{});
      for (int64_t m = 0; m < many; ++m)
        if (const int64_t at = t - many + 1 + m; at >= 0 && at < rows)
          std::copy_n(from + at * outputs, outputs, window + m * outputs);
      product(window, t, 1);
    }
  });
  return ffi::Error::Success();
}

template <class Kind>
auto convolution_of() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .template Arg<Buffer<Kind>>()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Ret<Buffer<Kind>>()
      .template Attr<int64_t>("stride");
}

template <class Kind>
auto kernel_gradient_of() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .template Arg<Buffer<Kind>>()
      .template Arg<Buffer<Kind>>()
      .template Ret<ffi::Buffer<ffi::F32>>()
      .template Ret<ffi::Buffer<ffi::F32>>()
      .template Attr<int64_t>("stride");
}

template <class Kind>
auto frames_gradient_of() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .template Arg<Buffer<Kind>>()
      .template Arg<ffi::Buffer<ffi::F32>>()
      .template Ret<Buffer<Kind>>()
      .template Attr<int64_t>("stride");
}

}  // namespace
