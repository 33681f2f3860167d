// Debias and select on a GPU: which columns of every segment stay, as one bit per column.
//
// A team of blocks, often of one, decides for a segment. A column's score becomes an "order", 32 bits that compare as scores
// do, and 0 for a column that does not compete. The k-th largest order of a segment is found eight bits at a time by
// counting, from the first bit on in which orders differ at all; columns that tie with it stay from the smallest on.
#pragma once

#include "adatp/arguments.h"
#include "adatp/cuda/block.cuh"
#include "adatp/cuda/divisor.cuh"

namespace adatp::cuda {

// Where a segment's columns are: the first is `columns − from_end`, the last before `end`, in so many runs.
struct Range {
  uint32_t from_end, end, runs;
};

// Which bits are 1, and which are 0, in any order of a segment.
struct Bits {
  uint32_t ones, zeros;

  ADATP_DEVICE void add(uint32_t number) { ones |= number, zeros |= ~number; }
};

// What the blocks of a team share: besides, how many orders have each digit, by pass, and how many blocks have arrived at a
// barrier.
struct Team {
  Bits bits;
  uint32_t counts[4][256], arrived;
};

// What is selected from, and where the intermediate results go.
struct Selecting {
  const float* scores;  // [B, N], or null: then their sums over the rows are
  int64_t score_strides[2];
  const float* partial_sums;  // [B, num_sums, N], added in this order
  int64_t num_sums, query_heads;
  const uint8_t* query_mask;  // [B, rows], 0 for a row that does not count; may be null
  int64_t query_mask_strides[2], rows;
  const float* prior;  // [B, N], may be null
  int64_t prior_strides[2];
  const int64_t *segments, *positions, *budgets;  // [B, N], [B, N], [B, S]
  int64_t segment_strides[2], position_strides[2], budget_strides[2];
  int32_t batch, columns, num_segments, num_positions, words, team_size;
  // Divides by num_segments, words, team_size, and a block's shares of the columns.
  Divisor by_segments, by_words, by_team, by_chunks;
  Dedup dedup;
  float soft_weight;
  uint32_t* orders;  // [B, N]
  // Zeroed before:
  uint32_t* kept;   // [B, words] bits
  Range* ranges;    // [B, S]
  uint64_t* best;   // [B, S, P], the largest key of each position; null if it fits into shared memory
  Team* teams;      // [B, S]; null if a team is one block
};

namespace detail {

// The table of the positions' best keys stands in shared memory up to so many positions.
constexpr int SHARED_POSITIONS = 4096;

struct SelectMemory {
  Bits bits;
  uint32_t counts[256], scratch[WARPS];
  uint32_t digit, left, exact;
  uint64_t best[SHARED_POSITIONS];
};

// A score as an unsigned integer of the same order: NaN lowest, −0 equal to +0. Never 0.
ADATP_DEVICE uint32_t order_of(float score) {
  if (score != score) return 1;  // −∞ is more
  const uint32_t bits = score == 0.0f ? 0u : bits_of(score);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

ADATP_DEVICE float score_of(uint32_t order) {
  return float_of(order & 0x80000000u ? order & 0x7FFFFFFFu : ~order);  // of 1 a NaN
}

// Orders as the method does: the higher score, then the smaller column. Never 0.
ADATP_DEVICE uint64_t key_of(uint32_t order, int column) { return uint64_t(order) << 32 | uint32_t(~column); }

// How many numbers each score of a batch row is the mean of. For whole warps.
ADATP_DEVICE float divisor_of(const Selecting& s, int batch) {
  if (s.scores) return 1.0f;
  uint32_t rows = uint32_t(s.rows);
  if (s.query_mask) {
    rows = 0;
    for (int row = 0; row < s.rows; row += WARP) {
      const int own = row + lane_index();
      const uint8_t* mask = s.query_mask + batch * s.query_mask_strides[0];
      rows += uint32_t(count_ones(ballot(own < s.rows && mask[own * s.query_mask_strides[1]])));
    }
  }
  return float((rows ? rows : 1) * uint32_t(s.query_heads));
}

// Without the prior.
ADATP_DEVICE float score_at(const Selecting& s, int batch, int column, float divisor) {
  if (s.scores) return s.scores[batch * s.score_strides[0] + column * s.score_strides[1]];
  float sum = 0.0f;
  for (int i = 0; i < s.num_sums; ++i) sum += s.partial_sums[(batch * s.num_sums + i) * s.columns + column];
  return sum / divisor;
}

// One segment of one batch row, as one thread of its team sees it.
class Segment {
 public:
  ADATP_DEVICE Segment(const Selecting& s, SelectMemory& memory, int team, int rank)
      : s_(s),
        memory_(memory),
        team_(s.teams ? s.teams + team : nullptr),
        bits_(s.teams ? s.teams[team].bits : memory.bits),
        batch_(s.by_segments.quotient(team)),
        segment_(s.by_segments.remainder(team, batch_)),
        rank_(rank) {
    const Range& range = s.ranges[team];
    low_ = s.columns - int(range.from_end);
    high_ = int(range.end);
    scattered_ = range.runs > 1;
    const int64_t budget = s.budgets[batch_ * s.budget_strides[0] + segment_ * s.budget_strides[1]];
    budget_ = budget < s.columns ? int(budget) : s.columns;
    orders_ = s.orders + int64_t(batch_) * s.columns;
    best_ = s.best ? s.best + int64_t(team) * s.num_positions : memory.best;
  }

  ADATP_DEVICE void select() {
    if (budget_ <= 0 || low_ >= high_) return;
    clear();
    score();
    if (s_.dedup != Dedup::off) {
      barrier();
      deduplicate();
    }
    find_bound();
    mark();
  }

 private:
  // Calls f(column, whether it is the segment's) in whole warps, each of which has 32 columns that share a word of bits.
  template <class F>
  ADATP_DEVICE void for_own_columns(const F& f) const {
    for (int word = low_ / WARP + rank_ * WARPS + warp_index(); word * WARP < high_; word += s_.team_size * WARPS) {
      const int column = word * WARP + lane_index();
      f(column, is_own(column));
    }
  }

  ADATP_DEVICE bool is_own(int column) const {
    return column >= low_ && column < high_ &&
           (!scattered_ || s_.segments[batch_ * s_.segment_strides[0] + column * s_.segment_strides[1]] == segment_);
  }

  // All threads of the team; they see each other's writes afterwards.
  ADATP_DEVICE void barrier() {
    block_barrier();
    if (!team_) return;
    expected_ += uint32_t(s_.team_size);
    if (thread_index() == 0) arrive_and_wait(&team_->arrived, expected_);
    block_barrier();
  }

  ADATP_DEVICE void clear() {
    if (!team_ && thread_index() == 0) bits_ = {};
    memory_.counts[thread_index()] = 0;
    if (!s_.best && s_.dedup != Dedup::off)
      for (int p = thread_index(); p < s_.num_positions; p += THREADS) best_[p] = 0;
    block_barrier();
  }

  // The columns' orders, and the best of every position.
  ADATP_DEVICE void score() {
    const float divisor = divisor_of(s_, batch_);
    Bits bits{};
    for_own_columns([&](int column, bool own) {
      if (!own) return;
      float score = score_at(s_, batch_, column, divisor);
      if (s_.prior) score *= s_.prior[batch_ * s_.prior_strides[0] + column * s_.prior_strides[1]];
      const uint32_t order = order_of(score);
      orders_[column] = order;
      if (s_.dedup == Dedup::off)
        bits.add(order);
      else if (uint64_t * best = best_at(column))
        atomic_max(best, key_of(order, column));
    });
    if (s_.dedup == Dedup::off) share(bits);
  }

  ADATP_DEVICE uint64_t* best_at(int column) const {
    const int64_t position = s_.positions[batch_ * s_.position_strides[0] + column * s_.position_strides[1]];
    return position >= 0 && position < s_.num_positions ? best_ + position : nullptr;
  }

  // All but the best of every position no longer compete, or by a weighted score.
  ADATP_DEVICE void deduplicate() {
    Bits bits{};
    for_own_columns([&](int column, bool own) {
      if (!own) return;
      uint32_t order = orders_[column];
      const uint64_t* best = best_at(column);
      if (!best || *best != key_of(order, column))
        orders_[column] = order = s_.dedup == Dedup::strict ? 0 : order_of(score_of(order) * s_.soft_weight);
      if (order) bits.add(order);
    });
    share(bits);
  }

  ADATP_DEVICE void share(const Bits& bits) {
    const uint32_t ones = any_of(bits.ones), zeros = any_of(bits.zeros);
    if (lane_index() == 0) atomic_or(&bits_.ones, ones), atomic_or(&bits_.zeros, zeros);
    barrier();
  }

  // The order that a column must reach to stay, and of those that just reach it, how many stay.
  ADATP_DEVICE void find_bound() {
    const uint32_t differ = bits_.ones & bits_.zeros;
    left_ = uint32_t(budget_);
    bound_ = bits_.ones & ~differ;
    if (!differ) return;  // all the same, or a single one
    int top = 31 - leading_zeros(differ);
    for (int pass = 0;; ++pass) {
      const int shift = top > 7 ? top - 7 : 0;
      const uint32_t fixed = ~low_bits(top + 1), digits = low_bits(top + 1 - shift);
      for_own_columns([&](int column, bool own) {
        const uint32_t order = own ? orders_[column] : 0;
        if (order && ((order ^ bound_) & fixed) == 0) atomic_add(&memory_.counts[order >> shift & digits], 1);
      });
      block_barrier();
      choose_digit(pass);
      bound_ |= memory_.digit << shift;
      left_ = memory_.left;
      const bool exact = memory_.exact;
      block_barrier();
      if (exact) {  // all that reach the bound stay
        left_ = ~0u;
        return;
      }
      if (shift == 0) return;
      top = shift - 1;
    }
  }

  static ADATP_DEVICE uint32_t low_bits(int count) { return count >= 32 ? ~0u : (1u << count) - 1; }

  // The largest digit that, with all larger ones, enough orders have; leaves the block's counts zeroed.
  ADATP_DEVICE void choose_digit(int pass) {
    const uint32_t digit = uint32_t(THREADS - 1 - thread_index());
    uint32_t count = memory_.counts[digit];
    memory_.counts[digit] = 0;
    if (team_) {
      if (count) atomic_add(&team_->counts[pass][digit], count);
      barrier();
      count = team_->counts[pass][digit];
    }
    const Sums sums = block_sums(count, memory_.scratch);
    const uint32_t larger = sums.up_to_own - count;
    const bool too_few = sums.all < left_;  // the budget is more than what competes
    if (too_few ? thread_index() == THREADS - 1 : larger < left_ && left_ <= sums.up_to_own) {
      memory_.digit = digit;
      memory_.left = left_ - larger;
      memory_.exact = too_few || left_ == sums.up_to_own;
    }
    block_barrier();
  }

  // One bit for every column that stays. Ties are counted in the columns' order, by the team's first block alone.
  ADATP_DEVICE void mark() {
    for_own_columns([&](int column, bool own) {
      const uint32_t order = own ? orders_[column] : 0;
      set(column / WARP, ballot(order && (left_ == ~0u ? order >= bound_ : order > bound_)));
    });
    if (left_ == ~0u || rank_ != 0) return;
    for (int begin = low_ / WARP * WARP; begin < high_ && left_ > 0; begin += THREADS) {
      const int column = begin + thread_index();
      const bool ties = is_own(column) && orders_[column] == bound_ && bound_ != 0;
      const Sums sums = block_sums(ties, memory_.scratch);
      set(column / WARP, ballot(ties && sums.up_to_own <= left_));
      left_ -= sums.all < left_ ? sums.all : left_;
    }
  }

  ADATP_DEVICE void set(int word, uint32_t bits) {
    if (bits && lane_index() == 0) atomic_or(s_.kept + int64_t(batch_) * s_.words + word, bits);
  }

  const Selecting& s_;
  SelectMemory& memory_;
  Team* team_;  // null if that is one block
  Bits& bits_;
  int batch_, segment_, rank_, low_, high_, budget_;
  bool scattered_;
  uint32_t* orders_;
  uint64_t* best_;
  uint32_t bound_ = 0, left_ = 0, expected_ = 0;
};

}  // namespace detail

// Beside phase 2: where each segment is; columns without a segment are kept.
ADATP_DEVICE void find_ranges(const Selecting& s) {
#pragma unroll 1  // more at a time would take a division
  for (int i = block_index() * WARPS + warp_index(); i < s.batch * s.words; i += num_blocks() * WARPS) {
    const int batch = s.by_words.quotient(i), column = s.by_words.remainder(i, batch) * WARP + lane_index();
    const int64_t* segments = s.segments + batch * s.segment_strides[0];
    const bool in_range = column < s.columns;
    const int64_t segment = in_range ? segments[column * s.segment_strides[1]] : 0;
    const uint32_t always = ballot(in_range && segment < 0);
    if (always && lane_index() == 0) atomic_or(s.kept + i, always);
    if (!in_range || segment < 0 || segment >= s.num_segments) continue;
    Range& range = s.ranges[int64_t(batch) * s.num_segments + segment];
    if (column == 0 || segments[(column - 1) * s.segment_strides[1]] != segment) {
      atomic_max(&range.from_end, uint32_t(s.columns - column));
      atomic_add(&range.runs, 1);
    }
    if (column == s.columns - 1 || segments[(column + 1) * s.segment_strides[1]] != segment)
      atomic_max(&range.end, uint32_t(column + 1));
  }
}

// Phase 3, if only scores are wanted: [B, N].
ADATP_DEVICE void write_scores(const Selecting& s, float* scores) {
  for (int i = block_index(); i < s.batch * s.by_chunks.number; i += num_blocks()) {
    const int batch = s.by_chunks.quotient(i), column = s.by_chunks.remainder(i, batch) * THREADS + thread_index();
    const float divisor = detail::divisor_of(s, batch);
    if (column < s.columns) scores[int64_t(batch) * s.columns + column] = detail::score_at(s, batch, column, divisor);
  }
}

// Phase 3: the bits of all columns that stay.
ADATP_DEVICE void select(const Selecting& s, char* shared) {
  auto& memory = *reinterpret_cast<detail::SelectMemory*>(shared);
  const int first = s.by_team.quotient(block_index()), rank = s.by_team.remainder(block_index(), first);
  const int teams = s.batch * s.num_segments, stride = s.by_team.quotient(num_blocks());
  // Blocks that are left over when all teams are whole would begin behind the last segment.
  for (int team = first; team < teams; team += stride) {
    detail::Segment(s, memory, team, rank).select();
    block_barrier();  // shared memory is the next segment's
  }
}

}  // namespace adatp::cuda
