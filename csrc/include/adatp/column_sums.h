// Row LSE and text-to-visual column sums on a CPU: the probabilities of a map that is never written down.
//
// Without an LSE a thread takes one panel of rows at a time and passes over the keys once: what it exponentiates for
// the LSE, relative to the largest score so far, it keeps, and when the LSE is known those numerators need one factor a
// tile and row to be probabilities. Where an LSE is all that is wanted, or given, tiles of keys are what threads share
// out, and each tile meets all panels while it is in the cache. Every number has its own place and its own order of
// summation, and what is kept depends on sizes alone, so that results depend neither on the threads nor on the caches.
//
// Errors: an exponential 2^x is off by 2e-7 and, as x is rounded, by another 4.2e-8 · |x|, relatively. From a score at
// once, a probability p is one exponential with x = log2 p; from a numerator it is two, whose x add up to that, and a
// product: at most 2e-7 + 4.2e-8 · |log2 p|, or 5e-7 + 4.2e-8 · |log2 p|. What is below 2^-127 may become 0. The rounding
// of scores and LSE, in float32, comes on top in the same way.
#pragma once

#include <algorithm>
#include <atomic>
#include <limits>
#include <mutex>
#include <utility>
#include <vector>

#include "adatp/arguments.h"
#include "adatp/attention_tiles.h"
#include "adatp/common.h"

namespace adatp {

namespace detail {

constexpr float INF = std::numeric_limits<float>::infinity();
// Keys of a part with a maximum and a sum of its own; fixed, so that results do not depend on the threads.
constexpr int64_t PART_KEYS = 16 * TILE_KEYS;
// Numerators that a thread keeps at most, a megabyte; the probabilities of further keys are computed again.
constexpr int64_t KEPT = 1 << 18;
// With fewer panels than this to a prompt threads would stand idle: keys are shared out instead, and multiplied twice.
constexpr int64_t FEW_PANELS = 4;

inline bool row_counts(const Attention& a, int64_t batch, int64_t row) {
  return !a.query_mask || a.query_mask[batch * a.query_mask_strides[0] + row % a.rows * a.query_mask_strides[1]];
}

// −∞ for the lanes of a panel that are no rows, or rows that shall not count: they contribute nothing, like rows that
// see nothing.
inline void silence(const Tiling& tiling, int64_t batch, int64_t panel, float* lse) {
  for (int64_t lane = 0; lane < tiling.kernels.rows; ++lane) {
    const int64_t row = panel * tiling.kernels.rows + lane;
    if (row >= tiling.attention.packed_rows() || !row_counts(tiling.attention, batch, row)) lse[lane] = -INF;
  }
}

// All panels of one key head.
class Head {
 public:
  explicit Head(const Tiling& tiling)
      : tiling_(tiling), rows_(tiling, tiling.panels), lse_(tiling.panels * tiling.kernels.rows) {}

  template <class Parallel>
  void pack(int64_t batch, int64_t head, const Parallel& parallel) {
    batch_ = batch;
    head_ = head;
    parallel(tiling_.panels, grain_of(tiling_.work(16)), [&](int64_t panel) { rows_.pack(batch, head, panel, panel); });
  }

  // The base-2 LSE of every packed row, over all keys that it sees.
  template <class Parallel>
  void compute_lse(const Parallel& parallel) {
    const TileKernels& kernels = tiling_.kernels;
    const int64_t keys = tiling_.seen, rows = tiling_.panels * kernels.rows, parts = (keys + PART_KEYS - 1) / PART_KEYS;
    maxima_.assign(parts * rows, -INF);
    sums_.assign(parts * rows, 0.0f);
    parallel(parts, grain_of(tiling_.work(PART_KEYS) * tiling_.panels), [&](int64_t part) {
      KeyTiles tiles(tiling_);
      const Memory scratch((TILE_KEYS + 1) * kernels.rows);
      const int64_t end = std::min(keys, (part + 1) * PART_KEYS);
      for (int64_t first = part * PART_KEYS; first < end; first += TILE_KEYS) {
        const KeyTile tile = tiles.tile(batch_, head_, first, end);
        for (int64_t p = 0; p < tiling_.panels; ++p) {
          const int64_t place = part * rows + p * kernels.rows;
          kernels.update_lse(tile, rows_.panel(p), &maxima_[place], &sums_[place], scratch.data(),
                             scratch + TILE_KEYS * kernels.rows);
        }
      }
    });
    for (int64_t p = 0; p < tiling_.panels; ++p) {
      const int64_t place = p * kernels.rows;
      kernels.lse_of_parts(maxima_.data() + place, sums_.data() + place, parts, rows, lse_.data() + place);
    }
  }

  float* lse() { return lse_.data(); }

  void silence_rows() {
    for (int64_t p = 0; p < tiling_.panels; ++p) silence(tiling_, batch_, p, lse_.data() + p * tiling_.kernels.rows);
  }

  // Adds to scores [last - first] the probabilities of those keys.
  template <class Parallel>
  void add_column_sums(int64_t first, int64_t last, float* scores, const Parallel& parallel) {
    const TileKernels& kernels = tiling_.kernels;
    const int64_t count = (last - first + TILE_KEYS - 1) / TILE_KEYS;
    parallel(count, grain_of(tiling_.work(TILE_KEYS) * tiling_.panels), [&](int64_t number) {
      KeyTiles tiles(tiling_);
      const int64_t begin = first + number * TILE_KEYS;
      const KeyTile tile = tiles.tile(batch_, head_, begin, last);
      alignas(64) float lanes[TILE_KEYS * MOST_LANES] = {}, sums[TILE_KEYS];
      for (int64_t p = 0; p < tiling_.panels; ++p)
        kernels.add_probabilities(tile, rows_.panel(p), lse_.data() + p * kernels.rows, lanes);
      kernels.sum_lanes(lanes, tile.count, sums);
      for (int64_t k = 0; k < tile.count; ++k) scores[begin - first + k] += sums[k];
    });
  }

 private:
  const Tiling& tiling_;
  PackedRows rows_;
  std::vector<float> lse_, maxima_, sums_;
  int64_t batch_ = 0, head_ = 0;
};

// One thread's panel of rows, and the column sums over it in one pass over the keys.
class PanelSums {
 public:
  PanelSums(const Tiling& tiling, int64_t first, int64_t last)
      : tiling_(tiling),
        first_(first),
        last_(last),
        first_tile_(first / TILE_KEYS),
        // Columns behind all that any row sees belong to it: beside a NaN they are NaN.
        end_(std::max(tiling.seen, last)),
        kept_(std::min((last + TILE_KEYS - 1) / TILE_KEYS - first_tile_, KEPT / tile_size())),
        rows_(tiling, 1),
        tiles_(tiling),
        numerators_((kept_ + 1) * tile_size()),
        shifts_((kept_ + 1) * tiling.kernels.rows),
        maxima_(parts() * tiling.kernels.rows),
        part_sums_(maxima_.size()) {}

  // The sums of one panel, [last - first].
  std::vector<float> operator()(int64_t batch, int64_t head, int64_t panel) {
    rows_.pack(batch, head, panel, 0);
    compute_lse(batch, head);
    silence(tiling_, batch, panel, lse_);
    return sum_columns(batch, head);
  }

 private:
  int64_t tile_size() const { return TILE_KEYS * tiling_.kernels.rows; }

  int64_t parts() const { return (end_ + PART_KEYS - 1) / PART_KEYS; }

  // Where a tile's numerators are kept; what is not kept shares the last place.
  int64_t place_of(int64_t tile) const {
    const int64_t place = tile - first_tile_;
    return place >= 0 && place < kept_ ? place : kept_;
  }

  void compute_lse(int64_t batch, int64_t head) {
    const int64_t rows = tiling_.kernels.rows;
    std::fill(maxima_.begin(), maxima_.end(), -INF);
    std::fill(part_sums_.begin(), part_sums_.end(), 0.0f);
    for (int64_t key = 0; key < end_; key += TILE_KEYS) {
      const int64_t part = key / PART_KEYS * rows, place = place_of(key / TILE_KEYS);
      tiling_.kernels.update_lse(tiles_.tile(batch, head, key, end_), rows_.panel(0), &maxima_[part], &part_sums_[part],
                                 numerators_ + place * tile_size(), shifts_ + place * rows);
    }
    tiling_.kernels.lse_of_parts(maxima_.data(), part_sums_.data(), parts(), rows, lse_);
  }

  std::vector<float> sum_columns(int64_t batch, int64_t head) {
    const TileKernels& kernels = tiling_.kernels;
    std::vector<float> scores(last_ - first_);
    alignas(64) float sums[TILE_KEYS];
    for (int64_t number = first_tile_; number * TILE_KEYS < last_; ++number) {
      const int64_t key = number * TILE_KEYS, count = std::min(TILE_KEYS, end_ - key), place = place_of(number);
      if (place < kept_) {
        kernels.sum_numerators(numerators_ + place * tile_size(), count, shifts_ + place * kernels.rows, lse_, sums);
      } else {
        alignas(64) float lanes[TILE_KEYS * MOST_LANES] = {};
        kernels.add_probabilities(tiles_.tile(batch, head, key, end_), rows_.panel(0), lse_, lanes);
        kernels.sum_lanes(lanes, count, sums);
      }
      for (int64_t k = std::max<int64_t>(0, first_ - key); k < std::min(count, last_ - key); ++k)
        scores[key + k - first_] = sums[k];
    }
    return scores;
  }

  const Tiling& tiling_;
  const int64_t first_, last_, first_tile_, end_, kept_;
  PackedRows rows_;
  KeyTiles tiles_;
  const Memory numerators_, shifts_;
  std::vector<float> maxima_, part_sums_;
  alignas(64) float lse_[MOST_ROWS];
};

// Adds to scores [B, last - first] the probabilities of those keys over all rows, in one pass.
template <class Parallel>
void add_panels(const Tiling& tiling, int64_t first, int64_t last, float* scores, const Parallel& parallel) {
  const Attention& a = tiling.attention;
  const int64_t panels = a.batch * a.kv_heads * tiling.panels, columns = last - first;
  // A thread goes on with the next panel as long as there is one, so that its memory is allocated once. Sums are added
  // in the order of the panels: those that are ready too early wait here, nobody waits for them.
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::vector<std::vector<float>> ready(panels);
  int64_t added = 0;
  parallel(panels, grain_of(tiling.work(a.keys)), [&](int64_t) {
    if (next >= panels) return;
    PanelSums sums_of(tiling, first, last);
    for (int64_t number = next++; number < panels; number = next++) {
      const int64_t head = number / tiling.panels;
      std::vector<float> sums = sums_of(head / a.kv_heads, head % a.kv_heads, number % tiling.panels);
      const std::lock_guard lock(mutex);
      ready[number] = std::move(sums);
      for (; added < panels && !ready[added].empty(); ++added) {
        float* own = scores + added / tiling.panels / a.kv_heads * columns;
        for (int64_t j = 0; j < columns; ++j) own[j] += ready[added][j];
        ready[added] = std::vector<float>();  // whose memory goes, other than with {}
      }
    }
  });
}

}  // namespace detail

// Natural-log LSE [B, Hq, T] of every row over the keys it sees; −∞ for a row that sees none.
// `parallel(n, grain, f)` calls f(i) for every i < n, in any order, on any threads, each at least `grain` times.
template <class Parallel>
void row_lse(const Attention& attention, float* lse, const Parallel& parallel, Isa isa = best_isa()) {
  const detail::Tiling tiling(attention, isa);
  detail::Head head(tiling);
  for (int64_t b = 0; b < attention.batch; ++b)
    for (int64_t h = 0; h < attention.kv_heads; ++h) {
      head.pack(b, h, parallel);
      head.compute_lse(parallel);
      for (int64_t r = 0; r < attention.packed_rows(); ++r) *lse++ = head.lse()[r] / detail::LOG2_E;
    }
}

// scores [B, last - first]: the mean, over heads and rows in the mask, of the probabilities of the keys [first, last).
// `lse` is natural, [B, Hq, T] with the strides given, or null.
template <class Parallel>
void column_sums(const Attention& attention, const float* lse, const int64_t (&lse_strides)[3], int64_t first,
                 int64_t last, float* scores, const Parallel& parallel, Isa isa = best_isa()) {
  const detail::Tiling tiling(attention, isa);
  const int64_t columns = last - first;
  std::fill(scores, scores + attention.batch * columns, 0.0f);
  if (!lse && attention.kv_heads * tiling.panels >= detail::FEW_PANELS) {
    detail::add_panels(tiling, first, last, scores, parallel);
  } else {
    detail::Head head(tiling);
    for (int64_t b = 0; b < attention.batch; ++b)
      for (int64_t h = 0; h < attention.kv_heads; ++h) {
        head.pack(b, h, parallel);
        if (lse)
          for (int64_t r = 0; r < attention.packed_rows(); ++r)
            head.lse()[r] = detail::LOG2_E *
                            lse[b * lse_strides[0] + (h * attention.group() + r / attention.rows) * lse_strides[1] +
                                r % attention.rows * lse_strides[2]];
        else
          head.compute_lse(parallel);
        head.silence_rows();
        head.add_column_sums(first, last, scores + b * columns, parallel);
      }
  }
  for (int64_t b = 0; b < attention.batch; ++b, scores += columns) {
    int64_t counted = 0;
    for (int64_t t = 0; t < attention.rows; ++t) counted += detail::row_counts(attention, b, t);
    const float mean = 1.0f / float(attention.query_heads * std::max<int64_t>(counted, 1));
    for (int64_t j = 0; j < columns; ++j) scores[j] *= mean;
  }
}

}  // namespace adatp
