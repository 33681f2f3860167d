// Compaction on a GPU: from bits to ascending token numbers, and every tensor's tokens to their places, in one phase.
//
// No list of tokens is needed before they move: from counts over groups of words a block finds the i-th bit that is set by
// itself.
#pragma once

#include <algorithm>
#include <utility>

#include "adatp/arguments.h"
#include "adatp/cuda/block.cuh"
#include "adatp/cuda/divisor.cuh"

namespace adatp::cuda {

// A tensor as [batch, walks ..., token, piece], the pieces being what lies together in source and target. Strides in bytes.
struct Move {
  static constexpr int WALKS = 4;
  const char* source;
  char* target;
  int64_t source_batch, target_batch, source_token, target_token;
  int64_t source_walk[WALKS], target_walk[WALKS];
  Divisor walk_size[WALKS], outer;
  Divisor words;  // of a piece
  int32_t word_bytes, unit_tokens, units;
};

// What survives and what moves.
struct Compacting {
  static constexpr int MOVES = 12;
  const uint32_t* bits;  // [B, words] of the columns; those behind the last one are zero
  int64_t* kept;         // [B, tokens]
  // A sequence is `first` tokens, the columns, and others: all but columns survive, and `num_selected` of these.
  int32_t batch, first, columns, words, num_selected, tokens;
  int32_t groups, group_words;  // of words, counted together
  int32_t units;  // of work for one batch row
  Move moves[MOVES];
};

namespace detail {

constexpr int UNIT_TOKENS = THREADS, UNIT_BYTES = 32768;
// Counts of bits stand in shared memory for so many groups of words.
constexpr int BIT_GROUPS = 2048;

struct CompactMemory {
  uint32_t before[BIT_GROUPS + 1], scratch[WARPS];
  int32_t tokens[UNIT_TOKENS];
};

// One batch row's surviving tokens.
class Survivors {
 public:
  ADATP_DEVICE Survivors(const Compacting& c, CompactMemory& memory) : c_(c), memory_(memory) {}

  // To be called by the whole block before the others.
  ADATP_DEVICE void count(int batch) {
    constexpr int OWN = BIT_GROUPS / THREADS;
    bits_ = c_.bits + int64_t(batch) * c_.words;
    uint32_t counts[OWN], all = 0;
    const auto group = [&](int i) { return (thread_index() * OWN + i) * c_.group_words; };
#pragma unroll  // all on their way together; there is no other word in a group, up to 65,536 columns
    for (int i = 0; i < OWN; ++i) counts[i] = group(i) < c_.words ? uint32_t(count_ones(bits_[group(i)])) : 0;
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
      const int end = group(i + 1) < c_.words ? group(i + 1) : c_.words;
#pragma unroll 1
      for (int word = group(i) + 1; word < end; ++word) counts[i] += uint32_t(count_ones(bits_[word]));
      all += counts[i];
    }
    uint32_t before = block_sums(all, memory_.scratch).up_to_own - all;
#pragma unroll
    for (int i = 0; i < OWN; ++i) {
      if (thread_index() * OWN + i <= c_.groups) memory_.before[thread_index() * OWN + i] = before;
      before += counts[i];
    }
    if (thread_index() == THREADS - 1 && c_.groups == BIT_GROUPS) memory_.before[c_.groups] = before;
    block_barrier();
  }

  // The i-th token that survives. What a caller got wrong about columns ends in repeated last ones.
  ADATP_DEVICE int token(int i) const {
    if (i < c_.first) return i;
    if (i >= c_.first + c_.num_selected) return i - c_.num_selected + c_.columns;
    return c_.first + column(uint32_t(i - c_.first));
  }

 private:
  ADATP_DEVICE int column(uint32_t i) const {
    if (i >= memory_.before[c_.groups]) return c_.columns - 1;
    int low = 0, high = c_.groups;  // before[low] ≤ i < before[high]
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (memory_.before[middle] <= i ? low : high) = middle;
    }
    int word = low * c_.group_words;
    i -= memory_.before[low];
    for (uint32_t count; (count = uint32_t(count_ones(bits_[word]))) <= i; ++word) i -= count;
    uint32_t bits = bits_[word];
    for (; i; --i) bits &= bits - 1;
    return word * WARP + count_ones((bits & (0u - bits)) - 1);
  }

  const Compacting& c_;
  CompactMemory& memory_;
  const uint32_t* bits_ = nullptr;
};

// `count` pieces, of the tokens in shared memory.
template <class Word>
ADATP_DEVICE void copy_pieces(const Move& move, const char* source, char* target, const int32_t* tokens, int count) {
  constexpr int TOGETHER = 4;  // loads on their way at a time
  const int all = count * move.words.number;
  for (int begin = thread_index(); begin < all; begin += THREADS * TOGETHER) {
    Word loaded[TOGETHER];
    const auto each = [&](const auto& f) {
#pragma unroll
      for (int t = 0; t < TOGETHER; ++t) {
        const int i = begin + t * THREADS, token = move.words.quotient(i);
        if (i < all) f(loaded[t], token, move.words.remainder(i, token));
      }
    };
    each([&](Word& word, int token, int w) {
      word = reinterpret_cast<const Word*>(source + tokens[token] * move.source_token)[w];
    });
    each([&](const Word& word, int token, int w) { reinterpret_cast<Word*>(target + token * move.target_token)[w] = word; });
  }
}

ADATP_DEVICE void copy_pieces(const Move& move, const char* source, char* target, const int32_t* tokens, int count) {
  switch (move.word_bytes) {
    case 1: return copy_pieces<uint8_t>(move, source, target, tokens, count);
    case 2: return copy_pieces<uint16_t>(move, source, target, tokens, count);
    case 4: return copy_pieces<uint32_t>(move, source, target, tokens, count);
    case 8: return copy_pieces<uint64_t>(move, source, target, tokens, count);
    default: return copy_pieces<Word16>(move, source, target, tokens, count);
  }
}

// One unit of work of a tensor: some tokens at one place of the outer dimensions.
ADATP_DEVICE void move_unit(const Move& move, const Compacting& c, const Survivors& survivors, CompactMemory& memory, int batch,
                            int unit) {
  const int part = move.outer.quotient(unit), begin = part * move.unit_tokens;
  const int count = c.tokens - begin < move.unit_tokens ? c.tokens - begin : move.unit_tokens;
  if (thread_index() < count) memory.tokens[thread_index()] = survivors.token(begin + thread_index());
  block_barrier();
  const char* source = move.source + batch * move.source_batch;
  char* target = move.target + batch * move.target_batch + begin * move.target_token;
  int outer = move.outer.remainder(unit, part);
#pragma unroll
  for (int w = 0; w < Move::WALKS; ++w) {
    const int further = move.walk_size[w].quotient(outer), step = move.walk_size[w].remainder(outer, further);
    source += step * move.source_walk[w];
    target += step * move.target_walk[w];
    outer = further;
  }
  copy_pieces(move, source, target, memory.tokens, count);
  block_barrier();
}

}  // namespace detail

// Phase 4: list the survivors, and move what belongs to them.
ADATP_DEVICE void compact(const Compacting& c, char* shared) {
  using namespace detail;
  auto& memory = *reinterpret_cast<CompactMemory*>(shared);
  Survivors survivors(c, memory);
  int counted = -1, batch = 0;
  for (int next = block_index();; next += num_blocks()) {
    for (; batch < c.batch && next >= c.units; ++batch) next -= c.units;
    if (batch >= c.batch) return;
    if (batch != counted) survivors.count(counted = batch);
    int unit = next;
    const int lists = c.kept ? int(ceil_div(c.tokens, UNIT_TOKENS)) : 0;
    if (unit < lists) {
      const int token = unit * UNIT_TOKENS + thread_index();
      if (token < c.tokens) c.kept[int64_t(batch) * c.tokens + token] = survivors.token(token);
      block_barrier();
      continue;
    }
    unit -= lists;
    int m = 0;
    for (; unit >= c.moves[m].units; ++m) unit -= c.moves[m].units;
    move_unit(c.moves[m], c, survivors, memory, batch, unit);
  }
}

// On the host: a transfer for the kernel. Its tensor has at most five dimensions and a target that is not empty.
inline Move move_of(const Transfer& t, int64_t batch, int64_t tokens) {
  Move move{};
  move.source = static_cast<const char*>(t.source);
  move.target = static_cast<char*>(t.target);
  const auto source_stride = [&](int64_t d) { return t.source_strides[d] * t.element_size; };
  const auto target_stride = [&](int64_t d) { return t.target_strides[d] * t.element_size; };
  move.source_token = source_stride(t.token_dim), move.target_token = target_stride(t.token_dim);
  if (batch > 1) {
    move.source_batch = t.source_sizes[t.batch_dim] > 1 ? source_stride(t.batch_dim) : 0;
    move.target_batch = target_stride(t.batch_dim);
  }
  // What lies together at the end in both tensors is one piece; the other dimensions are walked.
  int64_t piece = t.element_size;
  int walks = 0;
  int64_t outer = 1;
  std::fill_n(move.walk_size, Move::WALKS, divide_by(1));
  for (int64_t d = t.dims - 1; d >= 0; --d) {
    const int64_t size = t.target_sizes[d];
    if (d == t.token_dim || (batch > 1 && d == t.batch_dim) || size == 1) continue;
    if (source_stride(d) == piece && target_stride(d) == piece) {
      piece *= size;
      continue;
    }
    move.source_walk[walks] = source_stride(d), move.target_walk[walks] = target_stride(d);
    move.walk_size[walks++] = divide_by(size);
    outer *= size;
  }
  // The widest word that all these places are multiples of.
  int64_t places = piece | move.source_token | move.target_token | move.source_batch | move.target_batch;
  for (int w = 0; w < walks; ++w) places |= move.source_walk[w] | move.target_walk[w];
  places |= int64_t(reinterpret_cast<uintptr_t>(move.source) | reinterpret_cast<uintptr_t>(move.target));
  move.word_bytes = int32_t(std::min<int64_t>(16, places & -places));
  move.words = divide_by(piece / move.word_bytes);
  move.outer = divide_by(outer);
  move.unit_tokens = int32_t(std::clamp<int64_t>(detail::UNIT_BYTES / piece, 1, detail::UNIT_TOKENS));
  move.units = move.outer.number * int32_t(ceil_div(tokens, move.unit_tokens));
  return move;
}

}  // namespace adatp::cuda
