// Debias and select on a CPU: which columns of every segment stay, in ascending order.
//
// Every column gets an order, an unsigned integer that compares as its score does. A segment's k largest, of all columns or
// of the best of each position, are those that reach a bound, which is found bit by bit by counting: no branch depends on
// data, and the counting is vectors. Where more reach it than may stay, the last ones that equal it go.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
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

// A score as an unsigned integer of the same order: NaN is 1, the lowest, and 0 is no score.
template <class Score>
using OrderOf = std::conditional_t<sizeof(Score) == 4, uint32_t, uint64_t>;

template <class Order>
struct Bound {
  Order order;      // at least 1
  int64_t surplus;  // so many more than wanted reach it
};

template <class Score>
struct SelectLoops {
  using Order = OrderOf<Score>;
  void (*orders_of)(const Row<Score>&, Score, Order*);
  void (*find_best)(const Order*, const int64_t*, int64_t, int64_t, uint64_t, Order*, Order*);
  void (*lower_unmarked)(Order*, const Order*, const uint8_t*, int64_t);
  Bound<Order> (*bound_of_largest)(const Order*, int64_t, int64_t);
  void (*mark_at_least)(const Order*, int64_t, Order, uint8_t*);
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
    const int64_t columns = row_.columns;
    const uint8_t* marks = kept_.data();
    int64_t written = 0;
    for (int64_t j = 0; j < columns && written < num_selected; ++j) {
      kept[written] = j;
      written += marks[j];
    }
    std::fill(kept + written, kept + num_selected, columns - 1);
  }

 private:
  struct Range {
    int64_t begin, end;
  };

  // Columns of which a segment's stand together, ascending.
  struct Columns {
    Order* orders;
    const Order* lowered;  // for soft deduplication, the orders of all but the best
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
      if (budget > 0 && begin < end)
        select_segment({all.orders + begin, all.lowered ? all.lowered + begin : nullptr,
                        all.positions + begin * all.position_stride, all.position_stride, all.marks + begin},
                       end - begin, budget);
    }
  }

  void select_segment(const Columns& own, int64_t count, int64_t budget) {
    Bound<Order> bound;
    if (row_.dedup != Dedup::off) find_best(own, count);
    if (row_.dedup == Dedup::strict) {
      bound = loops_.bound_of_largest(best_.data(), int64_t(best_.size()), budget);
      mark_best(own, bound.order);
    } else {
      if (row_.dedup == Dedup::soft) {
        mark_best(own, 1);
        loops_.lower_unmarked(own.orders, own.lowered, own.marks, count);
      }
      bound = loops_.bound_of_largest(own.orders, count, budget);
      loops_.mark_at_least(own.orders, count, bound.order, own.marks);
    }
    for (int64_t i = count - 1; bound.surplus > 0; --i)
      if (own.marks[i] && own.orders[i] == bound.order) own.marks[i] = 0, --bound.surplus;
  }

  // Into `best_` and `best_columns_`, each position's largest order and the first column that has it.
  void find_best(const Columns& own, int64_t count) {
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
      return;
    }
    best_.clear();
    best_columns_.resize(count);
    std::iota(best_columns_.begin(), best_columns_.end(), Order(0));
    std::sort(best_columns_.begin(), best_columns_.end(), [&](Order a, Order b) {
      if (position(a) != position(b)) return position(a) < position(b);
      return own.orders[a] != own.orders[b] ? own.orders[a] > own.orders[b] : a < b;
    });
    const auto same = [&](Order a, Order b) { return position(a) == position(b); };
    best_columns_.erase(std::unique(best_columns_.begin(), best_columns_.end(), same), best_columns_.end());
    for (const Order column : best_columns_) best_.push_back(own.orders[column]);
  }

  void mark_best(const Columns& own, Order bound) {
    // Locals: for all the compiler knows, the bytes written could be the vectors' own pointers.
    const Order *orders = best_.data(), *columns = best_columns_.data();
    for (int64_t i = 0, count = int64_t(best_.size()); i < count; ++i) own.marks[columns[i]] |= orders[i] >= bound;
  }

  const Row<Score>& row_;
  const SelectLoops<Score>& loops_;
  std::unique_ptr<Order[]> orders_, lowered_;
  std::vector<Order> best_, best_columns_;  // of a segment; 0 for a position that does not occur
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
