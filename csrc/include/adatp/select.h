// Debias and select on a CPU: which columns of every segment stay, in ascending order.
//
// Every column gets an order, an unsigned integer that compares as its score does. Deduplication lowers the orders of those
// that represent no position. A segment's k largest are then those that reach a bound, which is found bit by bit by
// counting: no branch depends on data, and the counting is vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <type_traits>
#include <vector>

#include "adatp/common.h"

namespace adatp {

enum class Dedup { strict, soft, off };

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

// A score as an unsigned integer of the same order: NaN is 1, the lowest, and 0 is no score.
template <class Score>
using OrderOf = std::conditional_t<sizeof(Score) == 4, uint32_t, uint64_t>;

template <class Score>
struct SelectLoops {
  using Order = OrderOf<Score>;
  void (*orders_of)(const Row<Score>&, Score, Order*);
  void (*find_best)(const Order*, const int64_t*, int64_t, int64_t, uint64_t, Order*, Order*);
  void (*lower_unmarked)(Order*, const Order*, const uint8_t*, int64_t);
  void (*mark_largest)(const Order*, int64_t, int64_t, uint8_t*);
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
  using Order = OrderOf<Score>;

 public:
  RowSelection(const Row<Score>& row, Isa isa)
      : row_(row), loops_(loops_for<Score>(isa)), orders_(uninitialised(row.columns)), kept_(row.columns, 0) {
    loops_.orders_of(row, Score(1), orders_.get());
    if (row.dedup != Dedup::soft) return;
    lowered_ = uninitialised(row.columns);
    loops_.orders_of(row, row.soft_weight, lowered_.get());
  }

  // Marks what stays.
  void select() {
    // A segment's columns usually stand together; where they don't, they are copied together.
    std::vector<Range> ranges(row_.num_segments, Range{-1, -1});
    bool together = true;
    for (int64_t j = 0; j < row_.columns;) {
      const int64_t segment = segment_of(j), begin = j;
      j = loops_.run_end(row_.segments, row_.segment_stride, j, row_.columns);
      if (segment < 0) {
        std::fill(kept_.begin() + begin, kept_.begin() + j, uint8_t(1));
      } else if (segment < row_.num_segments) {
        together &= ranges[segment].begin < 0;
        ranges[segment] = {begin, j};
      }
    }
    if (together)
      select_ranges(ranges, {orders_.get(), lowered_.get(), row_.positions, row_.position_stride, kept_.data()});
    else
      select_scattered();
  }

  // The marked columns, ascending. What a caller got wrong ends in repeated last columns.
  void write(int64_t* kept, int64_t num_selected) const {
    int64_t written = 0;
    for (int64_t j = 0; j < row_.columns && written < num_selected; ++j) {
      kept[written] = j;
      written += kept_[j];
    }
    std::fill(kept + written, kept + num_selected, row_.columns - 1);
  }

 private:
  struct Range {
    int64_t begin, end;
  };

  // Columns of which a segment's stand together, ascending.
  struct Columns {
    Order* orders;
    const Order* lowered;  // what replaces the order of a column that represents no position; null for 0
    const int64_t* positions;
    int64_t position_stride;
    uint8_t* marks;
  };

  static std::unique_ptr<Order[]> uninitialised(int64_t count) { return std::unique_ptr<Order[]>(new Order[count]); }

  int64_t segment_of(int64_t column) const { return row_.segments[column * row_.segment_stride]; }

  void select_scattered() {
    const auto known = [this](int64_t segment) { return segment >= 0 && segment < row_.num_segments; };
    std::vector<Range> ranges(row_.num_segments, Range{0, 0});
    for (int64_t j = 0; j < row_.columns; ++j)
      if (const int64_t s = segment_of(j); known(s)) ++ranges[s].end;
    int64_t total = 0;
    for (Range& range : ranges) {
      const int64_t count = range.end;
      range = {total, total};
      total += count;
    }
    std::vector<int64_t> columns(total), positions(total);
    std::vector<Order> orders(total), lowered(lowered_ ? total : 0);
    std::vector<uint8_t> marks(total, 0);
    for (int64_t j = 0; j < row_.columns; ++j)
      if (const int64_t s = segment_of(j); known(s)) columns[ranges[s].end++] = j;
    for (int64_t i = 0; i < total; ++i) {
      positions[i] = row_.positions[columns[i] * row_.position_stride];
      orders[i] = orders_[columns[i]];
      if (lowered_) lowered[i] = lowered_[columns[i]];
    }
    select_ranges(ranges, {orders.data(), lowered_ ? lowered.data() : nullptr, positions.data(), 1, marks.data()});
    for (int64_t i = 0; i < total; ++i) kept_[columns[i]] = marks[i];
  }

  // `ranges` has one per segment, from its first column to behind its last.
  void select_ranges(const std::vector<Range>& ranges, const Columns& all) {
    for (int64_t s = 0; s < row_.num_segments; ++s) {
      const auto [begin, end] = ranges[s];
      const int64_t budget = row_.budgets[s * row_.budget_stride];
      if (budget <= 0 || begin == end) continue;
      const Columns own{all.orders + begin, all.lowered ? all.lowered + begin : nullptr,
                        all.positions + begin * all.position_stride, all.position_stride, all.marks + begin};
      if (row_.dedup != Dedup::off) {
        mark_best(own, end - begin);
        loops_.lower_unmarked(own.orders, own.lowered, own.marks, end - begin);
      }
      loops_.mark_largest(own.orders, end - begin, budget, own.marks);
    }
  }

  // Marks a segment's best column of each position.
  void mark_best(const Columns& own, int64_t count) {
    const auto position = [&own](int64_t i) { return own.positions[i * own.position_stride]; };
    // In a table by position, as long as it is in proportion.
    const uint64_t limit = 4 * count + 1024;
    uint64_t positions = row_.num_positions;
    if (!positions)
      for (int64_t i = 0; i < count; ++i)  // a negative position becomes a very large one
        positions = std::max(positions, std::min(uint64_t(position(i)), limit) + 1);
    if (positions <= limit) {
      best_.assign(positions, 0);
      best_columns_.assign(positions, 0);
      loops_.find_best(own.orders, own.positions, own.position_stride, count, positions, best_.data(),
                       best_columns_.data());
      for (uint64_t p = 0; p < positions; ++p) own.marks[best_columns_[p]] |= best_[p] != 0;
    } else {
      std::vector<int64_t> columns(count);
      std::iota(columns.begin(), columns.end(), 0);
      std::sort(columns.begin(), columns.end(), [&](int64_t a, int64_t b) {
        if (position(a) != position(b)) return position(a) < position(b);
        return own.orders[a] != own.orders[b] ? own.orders[a] > own.orders[b] : a < b;
      });
      for (int64_t i = 0; i < count; ++i)
        own.marks[columns[i]] = i == 0 || position(columns[i]) != position(columns[i - 1]);
    }
  }

  const Row<Score>& row_;
  const SelectLoops<Score>& loops_;
  std::unique_ptr<Order[]> orders_, lowered_;
  std::vector<Order> best_, best_columns_;  // by position; 0 where there is none
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
