// Tiles of an attention map on a CPU: rows in panels, keys in tiles, and which kernels run where they meet.
//
// The query heads that share a key head, times the text rows, are its "packed rows": row r is head r / T of the group
// and text row r % T.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "adatp/arguments.h"
#include "adatp/common.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace adatp {

namespace detail {

constexpr float LOG2_E = 1.4426950408889634f;
// The most that any instructions have: rows of a panel, floats of a register.
constexpr int64_t MOST_ROWS = 32, MOST_LANES = 16;
// Keys that meet a panel, or all panels, while they are in the first-level cache; a multiple of one product's.
constexpr int64_t TILE_KEYS = 48;

// Memory for so many floats, uninitialised, which begins where a cache line does: vectors that lie across two are slow.
class Memory {
 public:
  explicit Memory(int64_t count) : lines_(new Line[(count + 15) / 16]) {}

  float* data() const { return lines_[0].floats; }
  float* operator+(int64_t offset) const { return data() + offset; }

 private:
  struct alignas(64) Line {
    float floats[16];
  };
  std::unique_ptr<Line[]> lines_;
};

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
  const void* rows;          // [dim][ROWS], or [dim / 2][ROWS][2] bfloat16
  const int32_t* last_seen;  // up to which key each row sees, counted from the tile's origin; never before it
};

// What column_sums_tile.inl has for one set of instructions and one type of the elements multiplied.
struct TileKernels {
  int rows;       // of a panel
  bool dot_bf16;  // elements are bfloat16, two by two; float32 otherwise
  void (*update_lse)(const KeyTile&, const Panel&, float*, float*, float*, float*);
  void (*lse_of_parts)(const float*, const float*, int64_t, int64_t, float*);
  void (*add_probabilities)(const KeyTile&, const Panel&, const float*, float*);
  void (*sum_lanes)(const float*, int64_t, float*);
  void (*sum_numerators)(const float*, int64_t, const float*, const float*, float*);
  void (*widen)(const void*, DType, int64_t, int64_t, int64_t, int64_t, float*);
};

namespace portable {
#define ADATP_WIDTH 4
#define ADATP_KEYS 6
#define ADATP_DOT_BF16 0
#include "adatp/column_sums_tile.inl"
#undef ADATP_WIDTH
}  // namespace portable

#if defined(__x86_64__)

ADATP_BEGIN_TARGET("avx2,fma")
namespace avx2 {
#define ADATP_WIDTH 8
#include "adatp/column_sums_tile.inl"
#undef ADATP_WIDTH
#undef ADATP_KEYS
}  // namespace avx2
ADATP_END_TARGET

#define ADATP_WIDTH 16
#define ADATP_KEYS 12
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
#endif
#undef ADATP_KEYS
#undef ADATP_DOT_BF16

inline TileKernels kernels_for([[maybe_unused]] Isa isa, [[maybe_unused]] DType dtype) {
#if defined(__x86_64__)
  isa = std::min(isa, best_isa());
  if (isa == Isa::avx512_bf16 && dtype == DType::bfloat16) return avx512_bf16::kernels<uint16_t>();
  if (isa >= Isa::avx512) return avx512::kernels<float>();
  if (isa == Isa::avx2) return avx2::kernels<float>();
#endif
  return portable::kernels<float>();
}

// An attention and the kernels for it.
struct Tiling {
  Tiling(const Attention& attention, Isa isa)
      : attention(attention),
        kernels(kernels_for(isa, attention.dtype)),
        element(kernels.dot_bf16 ? 2 : 4),
        dim(kernels.dot_bf16 ? (attention.dim + 1) / 2 * 2 : attention.dim),
        panels((attention.packed_rows() + kernels.rows - 1) / kernels.rows),
        origin(std::min(attention.query_start, attention.keys)),
        seen(std::max<int64_t>(0, std::min(attention.keys, origin + attention.rows))) {}

  // How much it is to multiply so many keys with a panel, as `grain_of` counts.
  int64_t work(int64_t keys) const { return keys * kernels.rows * dim / 16; }

  const Attention& attention;
  const TileKernels kernels;
  const int64_t element, dim;  // bytes of what is multiplied, and how many they are, with padding
  const int64_t panels;        // of a key head
  // Rows see keys up to their own, or, from where 32 bits end, certainly all.
  const int64_t origin;
  const int64_t seen;  // by any row at all
};

// The rows of neighbouring panels of one key head.
class PackedRows {
 public:
  PackedRows(const Tiling& tiling, int64_t panels)
      : tiling_(tiling),
        packed_(panels * panel_floats()),
        last_seen_(panels * tiling.kernels.rows) {}

  // Lays out one panel of the head as panel `place` here.
  void pack(int64_t batch, int64_t head, int64_t panel, int64_t place) {
    const Attention& a = tiling_.attention;
    const int64_t lanes = tiling_.kernels.rows, first = panel * lanes, step = a.query_strides[3];
    const int64_t real = std::min(lanes, a.packed_rows() - first);
    float* packed = packed_ + place * panel_floats();
    if (real < lanes) std::fill(packed, packed + panel_floats(), 0.0f);
    for (int64_t lane = 0; lane < lanes; ++lane) last_seen_[place * lanes + lane] = int32_t((first + lane) % a.rows);
    const auto begin_of = [&](int64_t lane) {
      const int64_t row = first + lane, query_head = head * a.group() + row / a.rows;
      return batch * a.query_strides[0] + query_head * a.query_strides[1] + row % a.rows * a.query_strides[2];
    };
    // A few elements of every row at a time, so that the lines that they are read from and written to stay at hand.
    const auto interleave = [&](auto* to, int64_t count, const auto& element) {
      for (int64_t few = 0; few < count; few += 16)
        for (int64_t lane = 0; lane < real; ++lane)
          for (int64_t d = few, begin = begin_of(lane); d < std::min(few + 16, count); ++d)
            to[d * lanes + lane] = element(begin, d);
    };
    if (tiling_.kernels.dot_bf16) {
      const uint16_t* query = static_cast<const uint16_t*>(a.query);
      interleave(reinterpret_cast<uint32_t*>(packed), tiling_.dim / 2, [=, dim = a.dim](int64_t begin, int64_t pair) {
        const uint32_t low = query[begin + 2 * pair * step];
        return 2 * pair + 1 < dim ? low | uint32_t(query[begin + (2 * pair + 1) * step]) << 16 : low;
      });
    } else if (a.dtype == DType::float32) {
      interleave(packed, a.dim, [=, query = static_cast<const float*>(a.query)](int64_t begin, int64_t d) {
        return query[begin + d * step];
      });
    } else {
      interleave(packed, a.dim, [=, &a](int64_t begin, int64_t d) {
        return to_float(a.query, begin + d * step, a.dtype);
      });
    }
  }

  Panel panel(int64_t place) const {
    const int64_t row = place * tiling_.kernels.rows;
    return {packed_ + place * panel_floats(), last_seen_.data() + row};
  }

 private:
  int64_t panel_floats() const { return tiling_.kernels.rows * tiling_.dim * tiling_.element / 4; }

  const Tiling& tiling_;
  const Memory packed_;
  std::vector<int32_t> last_seen_;
};

// Tiles of keys as the kernels read them: where they lie if they can be, or else converted.
class KeyTiles {
 public:
  explicit KeyTiles(const Tiling& tiling) : tiling_(tiling) {
    const Attention& a = tiling.attention;
    const bool same_type = tiling.kernels.dot_bf16 || a.dtype == DType::float32;
    as_they_are_ = a.key_strides[3] == 1 && tiling.dim == a.dim && same_type;
    if (!as_they_are_) memory_.reset(new char[TILE_KEYS * tiling.dim * tiling.element]);
  }

  // Up to TILE_KEYS keys of one head, [first, end); valid until the next call.
  KeyTile tile(int64_t batch, int64_t head, int64_t first, int64_t end) {
    const Attention& a = tiling_.attention;
    const int64_t count = std::min(TILE_KEYS, end - first);
    const int64_t start = batch * a.key_strides[0] + head * a.key_strides[1] + first * a.key_strides[2];
    const void* keys = static_cast<const char*>(a.key) + start * size_of(a.dtype);
    if (!as_they_are_) {
      if (tiling_.kernels.dot_bf16)
        copy<uint16_t>(keys, count);
      else if (a.dtype == DType::float32)
        copy<float>(keys, count);
      else
        tiling_.kernels.widen(keys, a.dtype, count, a.dim, a.key_strides[2], a.key_strides[3],
                              reinterpret_cast<float*>(memory_.get()));
      keys = memory_.get();
    }
    const uint8_t* mask =
        a.key_mask ? a.key_mask + batch * a.key_mask_strides[0] + first * a.key_mask_strides[1] : nullptr;
    return {keys, as_they_are_ ? a.key_strides[2] : tiling_.dim, count, tiling_.dim, first, tiling_.origin,
            a.scale * LOG2_E, mask, a.key_mask_strides[1]};
  }

 private:
  // With zeros up to the width that the kernels read.
  template <class Element>
  void copy(const void* from, int64_t count) {
    const Attention& a = tiling_.attention;
    const Element* keys = static_cast<const Element*>(from);
    Element* to = reinterpret_cast<Element*>(memory_.get());
    for (int64_t k = 0; k < count; ++k, keys += a.key_strides[2], to += tiling_.dim) {
      if (a.key_strides[3] == 1)
        std::memcpy(to, keys, a.dim * sizeof(Element));
      else
        for (int64_t d = 0; d < a.dim; ++d) to[d] = keys[d * a.key_strides[3]];
      std::fill(to + a.dim, to + tiling_.dim, Element(0));
    }
  }

  const Tiling& tiling_;
  bool as_they_are_;
  std::unique_ptr<char[]> memory_;
};

}  // namespace detail

}  // namespace adatp
