// Work shared out among the caller and the threads of XLA's pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

// Call `work(begin, size)` on parts of `count` that differ by one at most and are no larger than `most`.
template <class Work>
void evenly(int64_t count, int64_t most, Work work) {
  const int64_t parts = (count + most - 1) / most;
  for (int64_t i = 0; i < parts; ++i) work(count * i / parts, count * (i + 1) / parts - count * i / parts);
}

inline int64_t upto(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// The fewest pieces, from `least` to `most`, that leave no thread long without work when each is so many tasks of one
// size: nine of ten are busy to the end, or else as many as can be.
inline int64_t pieces_of(int64_t least, int64_t most, int64_t tasks, int64_t threads) {
  int64_t best = least;
  double busiest = 0;
  for (int64_t pieces = least; pieces <= std::max(least, most) && busiest < 0.9; ++pieces) {
    const int64_t all = pieces * tasks;
    const double busy = double(all) / upto(all, threads);
    if (busy > busiest) busiest = busy, best = pieces;
  }
  return best;
}

// This thread's memory for intermediate results, at the beginning of a cache line; each `use` has its own.
template <class Number>
Number* scratch(int use, int64_t size) {
  thread_local std::vector<char> memory[4];
  auto& mine = memory[use];
  if (mine.size() < size * sizeof(Number) + 64) mine.resize(size * sizeof(Number) + 64);
  const auto address = reinterpret_cast<uintptr_t>(mine.data());
  return reinterpret_cast<Number*>(mine.data() + (64 - address % 64) % 64);
}

// Tasks that the caller and the threads of XLA's pool take in turns. The caller waits for those only that somebody has
// begun, so that it cannot wait for a thread that waits likewise; one that comes late finds nothing left.
template <class Work>
struct Queue {
  Queue(Work work, int64_t tasks) : work(work), tasks(tasks) {}
  void run() {
    for (int64_t task; (task = next++) < tasks; ++done) work(task);
  }
  const Work work;
  const int64_t tasks;
  std::atomic<int64_t> next{0}, done{0};
};

inline int64_t threads(xla::ffi::ThreadPool& pool) { return std::max<int64_t>(1, pool.num_threads()); }

template <class Work>
void share(xla::ffi::ThreadPool& pool, int64_t tasks, Work work) {
  auto queue = std::make_shared<Queue<Work>>(work, tasks);
  for (int64_t i = 1; i < std::min(threads(pool), tasks); ++i) pool.Schedule([queue] { queue->run(); });
  queue->run();
  while (queue->done < tasks) std::this_thread::yield();
}
