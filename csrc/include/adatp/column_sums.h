// Row LSE and text-to-visual column sums on a CPU: the probabilities of a map that is never written down.
//
// One key head at a time. The query heads that share it, times the text rows, are its "packed rows" (row r is head
// r / T of the group and text row r % T), laid out in panels whose lanes are rows. The keys go past in tiles, and each
// tile meets all panels while it is in the cache. Tiles are what threads share out; every number has its own place and
// its own order of summation, so neither depends on how many threads there are.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "adatp/arguments.h"
#include "adatp/common.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace adatp {

namespace detail {

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float INF = std::numeric_limits<float>::infinity();
// Keys that meet all panels while they are in the first-level cache; a multiple of the keys of one product.
constexpr int64_t TILE_KEYS = 48;
// Keys of a part with a maximum and a sum of its own; fixed, so that results do not depend on the threads.
constexpr int64_t PART_KEYS = 16 * TILE_KEYS;

struct KeyTile {
  const void* keys;  // [count, dim], element stride 1
  int64_t stride, count, dim;
  int64_t first;   // coordinate of the first key
  int64_t origin;  // what `last_seen` of a panel counts from
  float scale_log2;
  const uint8_t* mask;  // of the tile's first key, or null
  int64_t mask_stride;
};

struct Panel {
  const void* rows;  // [dim][ROWS], or [dim / 2][ROWS][2] bfloat16
  const int32_t* last_seen;  // up to which key each row sees, counted from the tile's origin; never before it
  const float* lse;           // base 2; −∞ for a row that does not count
};

struct TileKernels {
  int rows, width;
  bool dot_bf16;
  void (*widen)(const void*, DType, int64_t, int64_t, int64_t, int64_t, float*);
  void (*update_lse)(const KeyTile&, const Panel&, float*, float*);
  void (*add_probabilities)(const KeyTile&, const Panel&, float*);
  void (*update_lse_bf16)(const KeyTile&, const Panel&, float*, float*);
  void (*add_probabilities_bf16)(const KeyTile&, const Panel&, float*);
};

namespace portable {
#define ADATP_WIDTH 4
#define ADATP_VECTORS 2
#define ADATP_DOT_BF16 0
#include "adatp/column_sums_tile.inl"
#undef ADATP_WIDTH
#undef ADATP_VECTORS
}  // namespace portable

#if defined(__x86_64__)

ADATP_BEGIN_TARGET("avx2,fma")
namespace avx2 {
#define ADATP_WIDTH 8
#define ADATP_VECTORS 2
#include "adatp/column_sums_tile.inl"
#undef ADATP_WIDTH
#undef ADATP_VECTORS
}  // namespace avx2
ADATP_END_TARGET

#define ADATP_WIDTH 16
#define ADATP_VECTORS 4
ADATP_BEGIN_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
namespace avx512 {
#include "adatp/column_sums_tile.inl"
}  // namespace avx512
ADATP_END_TARGET

#undef ADATP_DOT_BF16
#define ADATP_DOT_BF16 1
ADATP_BEGIN_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")
namespace avx512_bf16 {
#include "adatp/column_sums_tile.inl"
}  // namespace avx512_bf16
ADATP_END_TARGET
#undef ADATP_WIDTH
#undef ADATP_VECTORS
#endif
#undef ADATP_DOT_BF16

inline const TileKernels& kernels_for([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
  switch (std::min(isa, best_isa())) {
    case Isa::avx512_bf16: return avx512_bf16::kernels();
    case Isa::avx512: return avx512::kernels();
    case Isa::avx2: return avx2::kernels();
    default: break;
  }
#endif
  return portable::kernels();
}

// One key head with its packed rows.
class Head {
 public:
  Head(const Attention& attention, Isa isa)
      : attention_(attention),
        kernels_(kernels_for(isa)),
        dots_(kernels_.dot_bf16 && attention.dtype == DType::bfloat16),
        dim_(dots_ ? (attention.dim + 1) / 2 * 2 : attention.dim),
        panels_((attention.packed_rows() + kernels_.rows - 1) / kernels_.rows),
        packed_(new char[panels_ * kernels_.rows * dim_ * (dots_ ? 2 : 4)]),
        last_seen_(panels_ * kernels_.rows),
        lse_(panels_ * kernels_.rows) {
    // Rows see keys up to their own, or, from where 32 bits end, certainly all.
    origin_ = std::min(attention.query_start, attention.keys);
    for (int64_t r = 0; r < int64_t(last_seen_.size()); ++r) last_seen_[r] = int32_t(r % attention.rows);
  }

  // Lays out the rows of one batch row and key head.
  template <class Parallel>
  void pack(int64_t batch, int64_t head, const Parallel& parallel) {
    batch_ = batch;
    head_ = head;
    parallel(panels_, grain_of(16 * kernels_.rows * dim_), [&](int64_t panel) {
      for (int64_t lane = 0; lane < kernels_.rows; ++lane) pack_row(panel, lane);
    });
  }

  // The base-2 LSE of every packed row, over all keys that it sees.
  template <class Parallel>
  void compute_lse(const Parallel& parallel) {
    const int64_t keys = std::max<int64_t>(0, std::min(attention_.keys, origin_ + attention_.rows));
    const int64_t rows = panels_ * kernels_.rows, parts = (keys + PART_KEYS - 1) / PART_KEYS;
    maxima_.resize(parts * rows);
    sums_.resize(parts * rows);
    parallel(parts, grain_of(PART_KEYS * rows * dim_ / 16), [&](int64_t part) {
      float* maximum = maxima_.data() + part * rows;
      float* sum = sums_.data() + part * rows;
      std::fill(maximum, maximum + rows, -INF);
      std::fill(sum, sum + rows, 0.0f);
      Converted converted(*this);
      const int64_t end = std::min(keys, (part + 1) * PART_KEYS);
      for (int64_t first = part * PART_KEYS; first < end; first += TILE_KEYS) {
        const KeyTile tile = converted.tile(first, std::min(TILE_KEYS, end - first));
        for (int64_t p = 0; p < panels_; ++p)
          (dots_ ? kernels_.update_lse_bf16 : kernels_.update_lse)(
              tile, panel(p), maximum + p * kernels_.rows, sum + p * kernels_.rows);
      }
    });
    for (int64_t r = 0; r < rows; ++r) {
      float maximum = -INF, sum = 0.0f;
      for (int64_t part = 0; part < parts; ++part) {
        const float other = maxima_[part * rows + r];
        maximum = other <= maximum ? maximum : other;
      }
      for (int64_t part = 0; part < parts; ++part) {
        const float own = sums_[part * rows + r], other = maxima_[part * rows + r];
        if (own != 0.0f) sum += other == maximum ? own : own * std::exp2(other - maximum);
      }
      lse_[r] = sum == 0.0f ? -INF : maximum + std::log2(sum);
    }
  }

  float* lse() { return lse_.data(); }

  // Makes rows that shall not count contribute nothing, like those that see nothing.
  void silence_rows() {
    for (int64_t r = 0; r < int64_t(lse_.size()); ++r)
      if (r >= attention_.packed_rows() || !counts(r)) lse_[r] = -INF;
  }

  // Adds to scores [last - first] the probabilities of those keys.
  template <class Parallel>
  void add_column_sums(int64_t first, int64_t last, float* scores, const Parallel& parallel) {
    const int64_t tiles = (last - first + TILE_KEYS - 1) / TILE_KEYS;
    parallel(tiles, grain_of(TILE_KEYS * panels_ * kernels_.rows * dim_ / 16), [&](int64_t number) {
      const int64_t begin = first + number * TILE_KEYS, count = std::min(TILE_KEYS, last - begin);
      alignas(64) float sums[TILE_KEYS * 16] = {};
      Converted converted(*this);
      const KeyTile tile = converted.tile(begin, count);
      for (int64_t p = 0; p < panels_; ++p)
        (dots_ ? kernels_.add_probabilities_bf16 : kernels_.add_probabilities)(tile, panel(p), sums);
      for (int64_t k = 0; k < count; ++k) {
        float total = 0.0f;
        for (int lane = 0; lane < kernels_.width; ++lane) total += sums[k * kernels_.width + lane];
        scores[begin - first + k] += total;
      }
    });
  }

  bool counts(int64_t row) const {
    const int64_t t = row % attention_.rows;
    return !attention_.query_mask ||
           attention_.query_mask[batch_ * attention_.query_mask_strides[0] + t * attention_.query_mask_strides[1]];
  }

 private:
  // A tile of keys as the kernels read them: where they lie if they can be, or else converted.
  class Converted {
   public:
    explicit Converted(const Head& head) : head_(head) {}

    KeyTile tile(int64_t first, int64_t count) {
      const Attention& a = head_.attention_;
      const int64_t start = head_.batch_ * a.key_strides[0] + head_.head_ * a.key_strides[1] + first * a.key_strides[2];
      const char* keys = static_cast<const char*>(a.key) + start * size_of(a.dtype);
      const bool as_they_are = a.key_strides[3] == 1 && head_.dim_ == a.dim && (head_.dots_ || a.dtype == DType::float32);
      if (!as_they_are) {
        if (!memory_) memory_.reset(new char[TILE_KEYS * head_.dim_ * 4]);
        if (head_.dots_)
          copy(reinterpret_cast<const uint16_t*>(keys), count, reinterpret_cast<uint16_t*>(memory_.get()));
        else if (a.dtype == DType::float32)
          copy(reinterpret_cast<const float*>(keys), count, reinterpret_cast<float*>(memory_.get()));
        else
          head_.kernels_.widen(keys, a.dtype, count, a.dim, a.key_strides[2], a.key_strides[3],
                               reinterpret_cast<float*>(memory_.get()));
        keys = memory_.get();
      }
      const uint8_t* mask = a.key_mask ? a.key_mask + head_.batch_ * a.key_mask_strides[0] + first * a.key_mask_strides[1] : nullptr;
      return {keys, as_they_are ? a.key_strides[2] : head_.dim_, count, head_.dim_, first, head_.origin_,
              a.scale * LOG2_E, mask, a.key_mask_strides[1]};
    }

   private:
    // One element after the other, and zeros up to the width that the kernels read.
    template <class Element>
    void copy(const Element* keys, int64_t count, Element* to) const {
      const Attention& a = head_.attention_;
      for (int64_t k = 0; k < count; ++k)
        for (int64_t d = 0; d < head_.dim_; ++d)
          *to++ = d < a.dim ? keys[k * a.key_strides[2] + d * a.key_strides[3]] : Element(0);
    }

    const Head& head_;
    std::unique_ptr<char[]> memory_;
  };

  Panel panel(int64_t number) const {
    const int64_t row = number * kernels_.rows;
    return {packed_.get() + row * dim_ * (dots_ ? 2 : 4), last_seen_.data() + row, lse_.data() + row};
  }

  void pack_row(int64_t panel, int64_t lane) {
    const Attention& a = attention_;
    const int64_t row = panel * kernels_.rows + lane;
    const bool real = row < a.packed_rows();
    const int64_t head = head_ * a.group() + row / a.rows;
    const int64_t from = batch_ * a.query_strides[0] + head * a.query_strides[1] + row % a.rows * a.query_strides[2];
    char* panel_memory = packed_.get() + panel * kernels_.rows * dim_ * (dots_ ? 2 : 4);
    for (int64_t d = 0; d < dim_; ++d) {
      const int64_t index = from + d * a.query_strides[3];
      if (dots_)
        reinterpret_cast<uint16_t*>(panel_memory)[(d / 2 * kernels_.rows + lane) * 2 + d % 2] =
            real && d < a.dim ? static_cast<const uint16_t*>(a.query)[index] : 0;
      else
        reinterpret_cast<float*>(panel_memory)[d * kernels_.rows + lane] = real ? to_float(a.query, index, a.dtype) : 0.0f;
    }
  }

  const Attention& attention_;
  const TileKernels& kernels_;
  const bool dots_;
  const int64_t dim_, panels_;
  const std::unique_ptr<char[]> packed_;
  std::vector<int32_t> last_seen_;
  std::vector<float> lse_, maxima_, sums_;
  int64_t batch_ = 0, head_ = 0, origin_ = 0;
};

}  // namespace detail

// Natural-log LSE [B, Hq, T] of every row over the keys it sees; −∞ for a row that sees none.
// `parallel(n, grain, f)` calls f(i) for every i < n, in any order, on any threads, each at least `grain` times.
template <class Parallel>
void row_lse(const Attention& attention, float* lse, const Parallel& parallel, Isa isa = best_isa()) {
  detail::Head head(attention, isa);
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
void column_sums(const Attention& attention, const float* lse, const int64_t (&lse_strides)[3], int64_t first, int64_t last,
                 float* scores, const Parallel& parallel, Isa isa = best_isa()) {
  detail::Head head(attention, isa);
  for (int64_t b = 0; b < attention.batch; ++b, scores += last - first) {
    std::fill(scores, scores + (last - first), 0.0f);
    for (int64_t h = 0; h < attention.kv_heads; ++h) {
      head.pack(b, h, parallel);
      if (lse)
        for (int64_t r = 0; r < attention.packed_rows(); ++r)
          head.lse()[r] = detail::LOG2_E * lse[b * lse_strides[0] + (h * attention.group() + r / attention.rows) * lse_strides[1] +
                                               r % attention.rows * lse_strides[2]];
      else
        head.compute_lse(parallel);
      head.silence_rows();
      head.add_column_sums(first, last, scores, parallel);
    }
    int64_t counted = 0;
    for (int64_t t = 0; t < attention.rows; ++t) counted += head.counts(t);
    const float mean = 1.0f / float(attention.query_heads * std::max<int64_t>(counted, 1));
    for (int64_t j = 0; j < last - first; ++j) scores[j] *= mean;
  }
}

}  // namespace adatp
