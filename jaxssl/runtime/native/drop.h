// Dropout: the hash of a key and of each entry's place that `jaxssl.models.bits` describes, to the bit.
#pragma once

#include "vectors.h"

struct Drop {
  uint32_t first, last;  // words of the key
  uint32_t place;        // of the first entry
  uint32_t threshold;    // entries whose bits are below it are dropped; 0: none is
  float scale;           // of the others

  Drop from(int64_t offset) const { return {first, last, place + uint32_t(offset), threshold, scale}; }

  // What is left of the entries from number `at` on.
  Vector left(Vector values, int64_t at) const {
    if (threshold == 0) return values;
    const Words bits = mixed(mixed((lanes() + (place + uint32_t(at))) ^ first) + last);
    return bits < threshold ? Vector{} : values * scale;
  }

 private:
  static Words mixed(Words x) {
    x = (x ^ (x >> 16)) * 0x7FEB352Du;
    x = (x ^ (x >> 15)) * 0x846CA68Bu;
    return x ^ (x >> 16);
  }
  static Words lanes() {
    Words all;
    for (int i = 0; i < kLanes; ++i) all[i] = i;
    return all;
  }
};

// The same of every head of a batch: words of two numbers each, and the places of one head.
struct Drops {
  const uint32_t* words;
  uint32_t threshold;
  float scale;
  int64_t places;

  Drop of(int64_t head) const {
    if (threshold == 0) return {};
    return {words[2 * head], words[2 * head + 1], uint32_t(head * places), threshold, scale};
  }
};
