// Debias and select on a CPU: which columns of every segment stay, in ascending order.
//
// Scores become unsigned integers of the same order, and a segment's threshold, its k-th largest, is found bit by bit by
// counting: no branch depends on data, and the counting is vectors. Ties at the threshold go to the smaller columns.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "adatp/common.h"

namespace adatp {

enum class Dedup { strict, soft, off };

// One batch row of `select`; see functional.select of the Python package. Strides in elements.
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
  Dedup dedup;
  Score soft_weight;
};

namespace detail {

struct SelectLoops {
  void (*orders_float)(const float*, int64_t, const float*, int64_t, int64_t, uint32_t*);
  void (*orders_double)(const double*, int64_t, const double*, int64_t, int64_t, uint64_t*);
  uint32_t (*kth_float)(const uint32_t*, int64_t, int64_t);
  uint64_t (*kth_double)(const uint64_t*, int64_t, int64_t);
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
ADATP_BEGIN_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,prefer-vector-width=512")
namespace avx512 {
#include "adatp/select_loops.inl"
}
ADATP_END_TARGET
#endif

inline const SelectLoops& loops_for(Isa isa) {
#if defined(__x86_64__)
  isa = std::min(isa, best_isa());
  if (isa >= Isa::avx512) return avx512::loops();
  if (isa == Isa::avx2) return avx2::loops();
#endif
  return portable::loops();
}

template <class Score>
class RowSelection {
 public:
  using Order = std::conditional_t<sizeof(Score) == 4, uint32_t, uint64_t>;

  RowSelection(const Row<Score>& row, Isa isa)
      : row_(row), loops_(loops_for(isa)), orders_(row.columns), kept_(row.columns, 0) {
    find_orders(row.scores, row.score_stride, row.prior, row.prior_stride, row.columns, orders_.data());
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
    if (together) {
      for (int64_t s = 0; s < row_.num_segments; ++s)
        if (begins[s] >= 0) select_segment(s, ends[s] - begins[s], [first = begins[s]](int64_t i) { return first + i; });
    } else {
      select_scattered();
    }
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

  // `column_at(i)` is the segment's i-th column, ascending.
  template <class ColumnAt>
  void select_segment(int64_t segment, int64_t count, const ColumnAt& column_at) {
    const int64_t k = row_.budgets[segment * row_.budget_stride];
    if (k <= 0 || count == 0) return;
    if (row_.dedup == Dedup::off) {
      keep_largest(k, count, column_at);
      return;
    }
    find_best(count, column_at);
    if (row_.dedup == Dedup::strict) {
      keep_largest(k, int64_t(best_.size()), [this](int64_t i) { return best_[i]; });
      return;
    }
    // Soft: all but the best compete by a weighted score.
    is_best_.assign(row_.columns, 0);
    for (const int64_t column : best_) is_best_[column] = 1;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t column = column_at(i);
      if (is_best_[column]) continue;
      Score score = row_.scores[column * row_.score_stride];
      if (row_.prior) score *= row_.prior[column * row_.prior_stride];
      score *= row_.soft_weight;
      find_orders(&score, 1, nullptr, 0, 1, &orders_[column]);
    }
    keep_largest(k, count, column_at);
  }

  void find_orders(const Score* scores, int64_t stride, const Score* prior, int64_t prior_stride, int64_t count,
                   Order* orders) const {
    if constexpr (sizeof(Score) == 4)
      loops_.orders_float(scores, stride, prior, prior_stride, count, orders);
    else
      loops_.orders_double(scores, stride, prior, prior_stride, count, orders);
  }

  Order kth_largest(int64_t k) const {
    if constexpr (sizeof(Score) == 4)
      return loops_.kth_float(listed_.data(), int64_t(listed_.size()), k);
    else
      return loops_.kth_double(listed_.data(), int64_t(listed_.size()), k);
  }

  // Into `best_`, in no order: of the columns with the same position the one of highest order, the first where they tie.
  template <class ColumnAt>
  void find_best(int64_t count, const ColumnAt& column_at) {
    const auto position = [this](int64_t column) { return row_.positions[column * row_.position_stride]; };
    best_.clear();
    // In a table by position, as long as it is in proportion.
    const int64_t limit = 4 * count + 1024;
    int64_t positions = 0;
    for (int64_t i = 0; i < count && positions <= limit; ++i) {
      const uint64_t own = uint64_t(position(column_at(i)));  // a negative one is very large
      positions = std::max(positions, int64_t(std::min<uint64_t>(own, limit)) + 1);
    }
    if (positions <= limit) {
      table_.assign(positions, {0, -1});
      for (int64_t i = 0; i < count; ++i) {
        const int64_t column = column_at(i);
        Entry& entry = table_[position(column)];
        if (orders_[column] > entry.order) entry = {orders_[column], column};
      }
      for (const Entry& entry : table_)
        if (entry.order) best_.push_back(entry.column);
    } else {
      for (int64_t i = 0; i < count; ++i) best_.push_back(column_at(i));
      std::sort(best_.begin(), best_.end(), [&](int64_t a, int64_t b) {
        if (position(a) != position(b)) return position(a) < position(b);
        return orders_[a] != orders_[b] ? orders_[a] > orders_[b] : a < b;
      });
      const auto same = [&](int64_t a, int64_t b) { return position(a) == position(b); };
      best_.erase(std::unique(best_.begin(), best_.end(), same), best_.end());
    }
  }

  // Marks the k columns of highest order; ties go to the smaller columns.
  template <class ColumnAt>
  void keep_largest(int64_t k, int64_t count, const ColumnAt& column_at) {
    if (k >= count) {
      for (int64_t i = 0; i < count; ++i) kept_[column_at(i)] = 1;
      return;
    }
    listed_.resize(count);
    for (int64_t i = 0; i < count; ++i) listed_[i] = orders_[column_at(i)];
    const Order threshold = kth_largest(k);
    int64_t left = k;
    bool tied = false;
    for (int64_t i = 0; i < count; ++i) {
      const bool more = listed_[i] > threshold;
      kept_[column_at(i)] = more;
      left -= more;
      tied |= listed_[i] == threshold;
    }
    if (!tied || left == 0) return;
    std::vector<int64_t> ties;
    for (int64_t i = 0; i < count; ++i)
      if (listed_[i] == threshold) ties.push_back(column_at(i));
    if (left < int64_t(ties.size())) std::nth_element(ties.begin(), ties.begin() + (left - 1), ties.end());
    for (int64_t i = 0; i < left; ++i) kept_[ties[i]] = 1;
  }

  struct Entry {
    Order order;  // 0 as long as there is none
    int64_t column;
  };

  const Row<Score>& row_;
  const SelectLoops& loops_;
  std::vector<Order> orders_, listed_;
  std::vector<uint8_t> kept_, is_best_;
  std::vector<int64_t> best_;
  std::vector<Entry> table_;
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
