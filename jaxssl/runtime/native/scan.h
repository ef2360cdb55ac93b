// The selective scan of Mamba-1 and its gradient, in float32: h(t) = exp(step(t) decay) h(t - 1) + step(t) x(t) into(t)
// and y(t) = h(t) · out(t). Vectors are of channels, which lie beside each other in every array but `into` and `out`,
// so that no frame needs a sum over the lanes of one; a task has some channels of one row, whose states stay in the
// cache. Sums over channels and rows are of parts that depend on sizes alone, added in one order: the same bits every
// time.
#pragma once

#include "buffers.h"
#include "linear.h"

namespace {

using Floats = ffi::Buffer<ffi::F32>;
using FloatResult = ffi::ResultBuffer<ffi::F32>;

constexpr int64_t kChannels = 64;  // of a task

// What is scanned: x and step are (batch, time, inner), decay (state, inner), into and out (batch, time, state).
struct Scanned {
  const float *x, *step, *decay, *into, *out;
  int64_t batch, time, inner, state;
  int64_t groups() const { return (inner + kChannels - 1) / kChannels; }  // of channels: a task for each, of each row
  int64_t cells() const { return state * kChannels; }                     // of a task's states
};

inline Scanned scanned(const Floats& x, const Floats& step, const Floats& decay, const Floats& into,
                       const Floats& out) {
  Scanned all;
  all.x = x.typed_data(), all.step = step.typed_data(), all.decay = decay.typed_data();
  all.into = into.typed_data(), all.out = out.typed_data();
  all.batch = x.dimensions()[0], all.time = x.dimensions()[1], all.inner = x.dimensions()[2];
  all.state = decay.dimensions()[0];
  return all;
}

// The first `count` floats, then zeros.
inline Vector first_of(const float* from, int64_t count) {
  if (count >= kLanes) return load(from);
  Vector values{};
  std::memcpy(&values, from, count * sizeof(float));
  return values;
}

// Take a task's channels out of (state, inner), with zeros behind the last, and put them back.
inline void take(const float* from, int64_t inner, int64_t state, int64_t count, float* to) {
  lay(from, inner, state, count, to, kChannels);
}
inline void put(const float* from, int64_t inner, int64_t state, int64_t count, float* to) {
  for (int64_t n = 0; n < state; ++n) std::copy_n(from + n * kChannels, count, to + n * inner);
}

// y and the last state (batch, state, inner), from a first state on; of every `chunk` frames the state before them too,
// (batch, chunks, state, inner), unless there is no room for any.
ffi::Error Scan(ffi::ThreadPool pool, Floats x, Floats step, Floats decay, Floats into, Floats out, Floats before,
                FloatResult y, FloatResult after, FloatResult starts, int64_t chunk) {
  const Scanned all = scanned(x, step, decay, into, out);
  const int64_t inner = all.inner, state = all.state, chunks = starts->dimensions()[1];
  const float* first = before.typed_data();
  float *to = y->typed_data(), *last = after->typed_data(), *kept = starts->typed_data();
  share(pool, all.batch * all.groups(), [=](int64_t task) {
    const int64_t row = task / all.groups(), begin = task % all.groups() * kChannels;
    const int64_t count = std::min(kChannels, inner - begin), whole = state * inner;
    float *h = scratch<float>(0, all.cells()), *decay = scratch<float>(1, all.cells());
    take(first + row * whole + begin, inner, state, count, h);
    take(all.decay + begin, inner, state, count, decay);
    for (int64_t t = 0; t < all.time; ++t) {
      if (chunks && t % chunk == 0) put(h, inner, state, count, kept + (row * chunks + t / chunk) * whole + begin);
      const int64_t at = row * all.time + t;
      const float *in = all.into + at * state, *out = all.out + at * state;
      for (int64_t c = 0; c < count; c += kLanes) {
        const int64_t here = at * inner + begin + c;
        const Vector step = first_of(all.step + here, count - c), u = step * first_of(all.x + here, count - c);
        Vector sum{};
        for (int64_t i = c, n = 0; n < state; ++n, i += kChannels) {
          const Vector moved = exponential(step * load(decay + i)) * load(h + i) + u * in[n];
          store(h + i, moved);
          sum += moved * out[n];
        }
        write(to + here, sum, count - c);
      }
    }
    put(h, inner, state, count, last + row * whole + begin);
  });
  return ffi::Error::Success();
}

// Where the gradients of a task's vector of channels go in a chunk: those of x and step to where these lie, those of
// into and out, whose sums over channels are not there yet, to (time, state) vectors.
struct Gradients {
  float *x, *step, *into, *out;
};

// Go through frames of kLanes channels, of which `count` are there, forwards and back again. They begin at `at` of
// (batch, time, inner) and at `from` of (batch, time, state); h is the state before them, g the gradient of that behind
// them, which becomes that of the one before, and `fading` gets what they add to the gradient of decay.
void through_frames(const Scanned& all, int64_t at, int64_t from, int64_t frames, int64_t count, const float* decay,
                    const float* h, const float* given, float* g, float* fading, const Gradients& to) {
  const int64_t state = all.state, wide = state * kLanes;
  float* shares = scratch<float>(2, (2 * frames + 1) * wide);  // of a state that are left after a frame
  float* states = shares + frames * wide;
  for (int64_t n = 0; n < state; ++n) store(states + n * kLanes, load(h + n * kChannels));
  for (int64_t t = 0; t < frames; ++t) {
    const int64_t here = at + t * all.inner;
    const Vector step = first_of(all.step + here, count), u = step * first_of(all.x + here, count);
    const float* in = all.into + from + t * state;
    for (int64_t n = 0, i = t * wide; n < state; ++n, i += kLanes) {
      const Vector share = exponential(step * load(decay + n * kChannels));
      store(shares + i, share);
      store(states + wide + i, share * load(states + i) + u * in[n]);
    }
  }
  for (int64_t t = frames - 1; t >= 0; --t) {
    const int64_t here = at + t * all.inner;
    const Vector step = first_of(all.step + here, count), x = first_of(all.x + here, count), u = step * x;
    const Vector heard = first_of(given + here, count);
    const float *in = all.into + from + t * state, *out = all.out + from + t * state;
    Vector to_u{}, to_step{};
    for (int64_t n = 0, i = t * wide; n < state; ++n, i += kLanes) {
      const Vector share = load(shares + i), mine = load(g + n * kChannels) + heard * out[n];
      const Vector left = mine * share, faded = left * load(states + i);
      store(to.into + i, load(to.into + i) + mine * u);
      store(to.out + i, load(to.out + i) + heard * load(states + wide + i));
      store(fading + n * kChannels, load(fading + n * kChannels) + faded * step);
      store(g + n * kChannels, left);
      to_u += mine * in[n];
      to_step += faded * load(decay + n * kChannels);
    }
    write(to.x + here, to_u * step, count);
    write(to.step + here, to_step + to_u * x, count);
  }
}

// What `parts` arrays of `size` add up to, from `begin` on.
inline void add_up(const float* parts, int64_t count, int64_t size, int64_t begin, int64_t end, float* to) {
  for (int64_t i = begin; i < end; ++i) to[i] = 0;
  for (int64_t part = 0; part < count; ++part)
    for (int64_t i = begin; i < end; ++i) to[i] += parts[part * size + i];
}

// The gradients of all that `Scan` takes, for what it kept and for those of y and of the last state.
ffi::Error ScanGradient(ffi::ThreadPool pool, Floats x, Floats step, Floats decay, Floats into, Floats out,
                        Floats starts, Floats to_y, Floats to_after, FloatResult to_x, FloatResult to_step,
                        FloatResult to_decay, FloatResult to_into, FloatResult to_out, FloatResult to_before,
                        int64_t chunk) {
  const Scanned all = scanned(x, step, decay, into, out);
  const int64_t inner = all.inner, state = all.state, groups = all.groups(), chunks = starts.dimensions()[1];
  const int64_t whole = state * inner, selected = all.batch * all.time * state;
  const float *kept = starts.typed_data(), *given = to_y.typed_data(), *behind = to_after.typed_data();
  float *of_x = to_x->typed_data(), *of_step = to_step->typed_data(), *first = to_before->typed_data();
  const auto into_parts = memory<float>(groups * selected), out_parts = memory<float>(groups * selected);
  const auto decay_parts = memory<float>(all.batch * whole);
  float *of_into = into_parts.get(), *of_out = out_parts.get(), *of_decay = decay_parts.get();
  share(pool, all.batch * groups, [=](int64_t task) {
    const int64_t row = task / groups, group = task % groups, begin = group * kChannels;
    const int64_t count = std::min(kChannels, inner - begin), cells = all.cells();
    float *g = scratch<float>(0, 2 * cells), *fading = g + cells;
    float *decay = scratch<float>(1, 2 * cells), *h = decay + cells;
    take(behind + row * whole + begin, inner, state, count, g);
    take(all.decay + begin, inner, state, count, decay);
    std::fill_n(fading, cells, 0.0f);
    for (int64_t k = chunks - 1; k >= 0; --k) {
      const int64_t frames = std::min(chunk, all.time - k * chunk), at = row * all.time + k * chunk;
      const int64_t size = frames * state * kLanes;
      float *into = scratch<float>(3, 2 * size), *out = into + size;
      std::fill_n(into, 2 * size, 0.0f);
      take(kept + (row * chunks + k) * whole + begin, inner, state, count, h);
      for (int64_t c = 0; c < count; c += kLanes)
        through_frames(all, at * inner + begin + c, at * state, frames, count - c, decay + c, h + c, given, g + c,
                       fading + c, {of_x, of_step, into, out});
      for (int64_t i = 0; i < frames * state; ++i) {
        of_into[group * selected + at * state + i] = total(load(into + i * kLanes));
        of_out[group * selected + at * state + i] = total(load(out + i * kLanes));
      }
    }
    put(g, inner, state, count, first + row * whole + begin);
    put(fading, inner, state, count, of_decay + row * whole + begin);
  });
  float *sum_decay = to_decay->typed_data(), *sum_into = to_into->typed_data(), *sum_out = to_out->typed_data();
  share(pool, std::max<int64_t>(all.batch, 1), [=](int64_t row) {
    const int64_t most = std::max<int64_t>(all.batch, 1), mine = all.time * state;
    add_up(of_decay, all.batch, whole, whole * row / most, whole * (row + 1) / most, sum_decay);
    if (all.batch == 0) return;
    add_up(of_into, groups, selected, row * mine, (row + 1) * mine, sum_into);
    add_up(of_out, groups, selected, row * mine, (row + 1) * mine, sum_out);
  });
  return ffi::Error::Success();
}

auto scan_of() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Ret<Floats>()
      .Ret<Floats>()
      .Ret<Floats>()
      .Attr<int64_t>("chunk");
}

auto scan_gradient_of() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Ret<Floats>()
      .Ret<Floats>()
      .Ret<Floats>()
      .Ret<Floats>()
      .Ret<Floats>()
      .Ret<Floats>()
      .Attr<int64_t>("chunk");
}

}  // namespace
