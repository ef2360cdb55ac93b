// Products with packed weights. A matrix of (depth, columns) is packed as panels of kPanel columns, one after the
// other, in each of which groups of `kGroup` numbers of a sum lie beside each other: (panels, depth / group, kPanel,
// group), filled up with zeros. A panel is read from its beginning to its end, as memory likes it. Before its numbers
// there is room for what whole numbers need (`quantised.h`), in every dtype, so that all have one shape.
//
// Everything rests on `tile`, a small product whose sums stay in registers.
#pragma once

#include "numbers.h"
#include "threads.h"
#include "tiles.h"

constexpr int64_t kPanel = 64;
constexpr int64_t kWide = kVectors * kLanes;  // columns of a tile
constexpr int64_t kBytes = 96 * 1024;         // of a panel that are multiplied before the next tile's turn
constexpr int64_t kHead = 4;                  // rows of a panel before its numbers
constexpr int64_t kTall = 126;                // rows whose sums stay in the cache

// How many pieces rows come in when each is multiplied by so many panels, a task each. Pieces have rows that are worth
// reading a panel for, and enough for a tile where there are tiles.
template <class Kind>
int64_t pieces_of_rows(int64_t rows, int64_t panels, int64_t threads) {
  constexpr int64_t kShort = Kind::kTiles ? 32 : 12;
  return pieces_of((rows + kTall - 1) / kTall, rows / kShort, panels, threads);
}

template <class Kind>
struct Panel {
  const typename Kind::Number* data;
  int64_t groups;
  static constexpr int64_t kStride = kPanel * Kind::kGroup;
};

// What is multiplied from the left: the factor of row i, of one group after the other.
template <class Kind>
struct Rows {
  const typename Kind::Number* data;
  int64_t stride;  // between rows
  auto at(int i, int part) const { return Kind::factor(data + i * stride, part); }
  void next() { data += Kind::kGroup; }
};

// The same of a matrix that lies transposed: groups of rows beside each other, as a panel has those of columns.
template <class Kind>
struct Columns {
  const typename Kind::Number* data;
  int64_t stride;  // between groups
  auto at(int i, int part) const { return Kind::factor(data + i * Kind::kGroup, part); }
  void next() { data += stride; }
};

// Memory to be fetched during a tile: a line every other group.
struct Ahead {
  const char* from;
  int64_t step;  // bytes
};

// sums (height, width × kLanes) = a · b, or += a · b, for as many groups as b has.
template <class Kind, int height, int width, class Left>
void tile(Left a, Panel<Kind> b, typename Kind::Cell* sums, int64_t stride, bool add, Ahead ahead) {
  typename Kind::Sum all[height][width];
#pragma GCC unroll 6
  for (int i = 0; i < height; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < width; ++j) begin_sum(all[i][j], sums + i * stride + j * kLanes, add);
#pragma GCC unroll 2
  for (int64_t k = 0; k < b.groups; ++k, a.next(), b.data += b.kStride) {
    if (k % 2 == 0) {
      __builtin_prefetch(ahead.from, 0, 2);
      ahead.from += ahead.step;
    }
#pragma GCC unroll 2
    for (int part = 0; part < Kind::kParts; ++part) {
      typename Kind::Row row[width];
#pragma GCC unroll 4
      for (int j = 0; j < width; ++j) row[j] = Kind::row(b.data + j * kLanes * Kind::kGroup, part);
#pragma GCC unroll 6
      for (int i = 0; i < height; ++i) {
        const auto factor = a.at(i, part);
#pragma GCC unroll 4
        for (int j = 0; j < width; ++j) Kind::add(all[i][j], factor, row[j]);
      }
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < height; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < width; ++j) end_sum(all[i][j], sums + i * stride + j * kLanes, add);
}

template <class Kind, int width, class Left>
void tile(int height, Left a, Panel<Kind> b, typename Kind::Cell* sums, int64_t stride, bool add, Ahead ahead) {
  switch (height) {
    case 6:
      return tile<Kind, 6, width>(a, b, sums, stride, add, ahead);
    case 5:
      return tile<Kind, 5, width>(a, b, sums, stride, add, ahead);
    case 4:
      return tile<Kind, 4, width>(a, b, sums, stride, add, ahead);
    case 3:
      return tile<Kind, 3, width>(a, b, sums, stride, add, ahead);
    case 2:
      return tile<Kind, 2, width>(a, b, sums, stride, add, ahead);
    case 1:
      return tile<Kind, 1, width>(a, b, sums, stride, add, ahead);
  }
}

// The same for the first `columns` of a panel and any that are left of the last vector.
template <class Kind, class Left>
void tile(int height, int64_t columns, Left a, Panel<Kind> b, typename Kind::Cell* sums, int64_t stride, bool add,
          Ahead ahead) {
  for (int64_t j = 0; j < columns; j += kWide, b.data += kWide * Kind::kGroup, sums += kWide)
    switch ((std::min(kWide, columns - j) + kLanes - 1) / kLanes) {
      case 1:
        tile<Kind, 1>(height, a, b, sums, stride, add, ahead);
        break;
      case 2:
        tile<Kind, 2>(height, a, b, sums, stride, add, ahead);
        break;
      case 3:
        tile<Kind, std::min(3, kVectors)>(height, a, b, sums, stride, add, ahead);
        break;
      case 4:
        tile<Kind, std::min(4, kVectors)>(height, a, b, sums, stride, add, ahead);
        break;
    }
}

// sums (rows, kPanel) = a · panel, or += a · panel, for the first `columns` of the panel. What comes next, in the end
// what is at `after`, is fetched meanwhile: memory is slower than a few rows' multiplications.
template <class Kind>
void multiply(Rows<Kind> a, Panel<Kind> panel, typename Kind::Cell* sums, int64_t rows, int64_t columns, bool add,
              const typename Kind::Number* after) {
  constexpr int64_t kGroupBytes = Panel<Kind>::kStride * sizeof(typename Kind::Number);
  constexpr int64_t kDepth = std::min(kBytes / kGroupBytes, Kind::kMost);
  evenly(panel.groups, kDepth, [&](int64_t k, int64_t groups) {
    const Panel<Kind> now{panel.data + k * panel.kStride, groups};
    const Rows<Kind> from{a.data + k * Kind::kGroup, a.stride};
    const int64_t done = by_tiles<Kind>(from.data, from.stride, now.data, groups, sums, rows, columns, add || k > 0);
    const auto* next = (const char*)(k + groups < panel.groups ? now.data + groups * panel.kStride : after);
    const int64_t step =
        2 * kGroupBytes * kRows / (rows + kRows);  // so that all tiles together fetch as much as they read
    evenly(rows - done, kRows, [&](int64_t i, int64_t height) {
      tile<Kind>(height, columns, Rows<Kind>{from.data + (done + i) * a.stride, a.stride}, now,
                 sums + (done + i) * kPanel, kPanel, add || k > 0, {next, step});
      next += (groups + 1) / 2 * step;
    });
  });
}
