// Debias and select on a CPU: which columns of every segment stay, in ascending order.
//
// Every column gets a key, an integer that orders as the method does: the higher score, then the smaller column. Keys are
// all different, so ties need no thought any more. A segment's k largest are those that reach a bound, which is found bit
// by bit by counting: no branch depends on data, and the counting is vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "adatp/arguments.h"
#include "adatp/common.h"

namespace adatp {

// One batch row of `select`; see functional.select of the Python package. Strides in elements; fewer than 2^32 columns.
template <class Score>
struct Row {
  const Score* scores;
  int64_t score_stride;
  const int64_t* segments;
  int64_t segment_stride;
  const int64_t* positions;
  int64_t position_stride;
  const int64_t* budgets;
  int64_t budget_stride;
  const Score* prior;  // may be null
  int64_t prior_stride;
  int64_t columns, num_segments;
  int64_t num_positions;  // more than any position, which is trusted, or 0 if that is not known
  Dedup dedup;
  Score soft_weight;
};

namespace detail {

__extension__ typedef unsigned __int128 Wide;

// A key is a score as an unsigned integer of the same order (NaN lowest), above the inverted number of its column.
template <class Score>
using OrderOf = std::conditional_t<sizeof(Score) == 4, uint32_t, uint64_t>;
template <class Score>
using Key = std::conditional_t<sizeof(Score) == 4, uint64_t, Wide>;

template <class Score>
struct SelectLoops {
  void (*keys_of)(const Score*, int64_t, const Score*, int64_t, int64_t, int64_t, Key<Score>*);
  Key<Score> (*bound_of_largest)(const Key<Score>*, int64_t, int64_t);
  void (*mark_at_least)(const Key<Score>*, int64_t, Key<Score>, uint8_t*);
  int64_t (*run_end)(const int64_t*, int64_t, int64_t, int64_t);
};

namespace portable {
#include "adatp/select_loops.inl"
}
#if defined(__x86_64__)
ADATP_BEGIN_TARGET("avx2,fma")
namespace avx2 {
#include "adatp/select_loops.inl"
}
ADATP_END_TARGET
ADATP_BEGIN_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma" ADATP_WIDE_VECTORS)
namespace avx512 {
#include "adatp/select_loops.inl"
}
ADATP_END_TARGET
#endif

template <class Score>
const SelectLoops<Score>& loops_for([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
  isa = std::min(isa, best_isa());
  if (isa >= Isa::avx512) return avx512::loops<Score>();
  if (isa == Isa::avx2) return avx2::loops<Score>();
#endif
  return portable::loops<Score>();
}

template <class Score>
class RowSelection {
 public:
  RowSelection(const Row<Score>& row, Isa isa)
      : row_(row), loops_(loops_for<Score>(isa)), keys_(row.columns), kept_((row.columns + 7) / 8 * 8, 0) {
    loops_.keys_of(row.scores, row.score_stride, row.prior, row.prior_stride, 0, row.columns, keys_.data());
  }

  // Marks what stays.
  void select() {
    // A segment's columns usually stand together; where they don't, all are listed by segment.
    std::vector<int64_t> begins(row_.num_segments, -1), ends(row_.num_segments, -1);
    bool together = true;
    for (int64_t j = 0; j < row_.columns;) {
      const int64_t segment = row_.segments[j * row_.segment_stride], begin = j;
      j = loops_.run_end(row_.segments, row_.segment_stride, j, row_.columns);
      if (segment < 0) {
        std::fill(kept_.begin() + begin, kept_.begin() + j, uint8_t(1));
      } else if (segment < row_.num_segments) {
        together &= begins[segment] < 0;
        begins[segment] = begin;
        ends[segment] = j;
      }
    }
    if (!together) {
      select_scattered();
      return;
    }
    for (int64_t s = 0; s < row_.num_segments; ++s) {
      const int64_t begin = begins[s], count = ends[s] - begins[s];
      if (row_.dedup == Dedup::off && budget(s) > 0 && budget(s) < count)  // nothing to list
        loops_.mark_at_least(keys_.data() + begin, count, loops_.bound_of_largest(keys_.data() + begin, count, budget(s)),
                             kept_.data() + begin);
      else
        select_segment(s, count, [begin](int64_t i) { return begin + i; });
    }
  }

  // The marked columns, ascending. What a caller got wrong ends in repeated last columns.
  void write(int64_t* kept, int64_t num_selected) const {
    int64_t written = 0;
    for (int64_t begin = 0; begin < row_.columns && written < num_selected; begin += 8) {
      uint64_t marks;
      std::memcpy(&marks, kept_.data() + begin, 8);
      for (; marks && written < num_selected; marks &= marks - 1) kept[written++] = begin + first_byte(marks);
    }
    std::fill(kept + written, kept + num_selected, row_.columns - 1);
  }

 private:
  // The place in memory of the first of eight bytes, 0 or 1 each, that is 1.
  static int64_t first_byte(uint64_t bytes) {
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    bytes = __builtin_bswap64(bytes);
#endif
    return __builtin_ctzll(bytes) / 8;
  }

  int64_t budget(int64_t segment) const { return row_.budgets[segment * row_.budget_stride]; }

  static int64_t column_of(Key<Score> key) { return int64_t(uint32_t(~uint32_t(key))); }

  void select_scattered() {
    std::vector<int64_t> starts(row_.num_segments + 1, 0);
    const auto known = [&](int64_t segment) { return segment >= 0 && segment < row_.num_segments; };
    for (int64_t j = 0; j < row_.columns; ++j)
      if (const int64_t s = row_.segments[j * row_.segment_stride]; known(s)) ++starts[s + 1];
    for (int64_t s = 0; s < row_.num_segments; ++s) starts[s + 1] += starts[s];
    std::vector<int64_t> columns(starts.back()), next(starts);
    for (int64_t j = 0; j < row_.columns; ++j)
      if (const int64_t s = row_.segments[j * row_.segment_stride]; known(s)) columns[next[s]++] = j;
    for (int64_t s = 0; s < row_.num_segments; ++s)
      select_segment(s, starts[s + 1] - starts[s], [mine = columns.data() + starts[s]](int64_t i) { return mine[i]; });
  }

  // `column_at(i)` is the segment's i-th column.
  template <class ColumnAt>
  void select_segment(int64_t segment, int64_t count, const ColumnAt& column_at) {
    const int64_t k = budget(segment);
    if (k <= 0 || count == 0) return;
    if (row_.dedup == Dedup::off)
      list(count, column_at);
    else
      list_best(count, column_at);
    if (row_.dedup == Dedup::soft) {
      weigh_all_but_listed(count, column_at);
      list(count, column_at);
    }
    const Key<Score> bound =
        k < int64_t(listed_.size()) ? loops_.bound_of_largest(listed_.data(), int64_t(listed_.size()), k) : 0;
    for (const Key<Score> key : listed_) kept_[column_of(key)] |= key >= bound;
  }

  // Into `listed_`, all keys of a segment.
  template <class ColumnAt>
  void list(int64_t count, const ColumnAt& column_at) {
    listed_.resize(count);
    for (int64_t i = 0; i < count; ++i) listed_[i] = keys_[column_at(i)];
  }

  // Into `listed_`, the largest key of each position of a segment.
  template <class ColumnAt>
  void list_best(int64_t count, const ColumnAt& column_at) {
    const auto position = [this](int64_t column) { return row_.positions[column * row_.position_stride]; };
    // In a table by position, as long as it is in proportion.
    const uint64_t limit = 4 * count + 1024;
    uint64_t positions = row_.num_positions;
    if (!positions)
      for (int64_t i = 0; i < count; ++i)  // a negative position becomes a very large one
        positions = std::max(positions, std::min(uint64_t(position(column_at(i))), limit) + 1);
    listed_.clear();
    if (positions <= limit) {
      listed_.resize(positions);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t column = column_at(i);
        const uint64_t own = uint64_t(position(column));
        if (own < positions) listed_[own] = std::max(listed_[own], keys_[column]);
      }
      listed_.erase(std::remove(listed_.begin(), listed_.end(), Key<Score>(0)), listed_.end());
    } else {
      std::vector<int64_t> columns(count);
      for (int64_t i = 0; i < count; ++i) columns[i] = column_at(i);
      std::sort(columns.begin(), columns.end(), [&](int64_t a, int64_t b) {
        return position(a) != position(b) ? position(a) < position(b) : keys_[a] > keys_[b];
      });
      for (int64_t i = 0; i < count; ++i)
        if (i == 0 || position(columns[i]) != position(columns[i - 1])) listed_.push_back(keys_[columns[i]]);
    }
  }

  // All columns of a segment but those listed compete by a weighted score.
  template <class ColumnAt>
  void weigh_all_but_listed(int64_t count, const ColumnAt& column_at) {
    for (const Key<Score> best : listed_) kept_[column_of(best)] = 1;  // for the moment
    for (int64_t i = 0; i < count; ++i) {
      const int64_t column = column_at(i);
      Score score = row_.scores[column * row_.score_stride];
      if (row_.prior) score *= row_.prior[column * row_.prior_stride];
      score *= row_.soft_weight;
      if (!kept_[column]) loops_.keys_of(&score, 1, nullptr, 0, column, 1, &keys_[column]);
      kept_[column] = 0;
    }
  }

  const Row<Score>& row_;
  const SelectLoops<Score>& loops_;
  std::vector<Key<Score>> keys_, listed_;
  std::vector<uint8_t> kept_;
};

}  // namespace detail

// Writes the columns of one batch row that stay, ascending, to `kept` [num_selected].
template <class Score>
void select_row(const Row<Score>& row, int64_t* kept, int64_t num_selected, Isa isa = best_isa()) {
  detail::RowSelection<Score> selection(row, isa);
  selection.select();
  selection.write(kept, num_selected);
}

}  // namespace adatp
