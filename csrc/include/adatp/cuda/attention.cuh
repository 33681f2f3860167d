// Row LSE and column sums on a GPU: the probabilities of a map that is never written down.
//
// The query heads that share a key head, times the text rows, are its "packed rows" (row r is head r / T of the group and
// text row r % T). One product serves both phases. A block keeps 128 rows of one operand in registers, as fragments of the
// matrix unit, and the other operand goes past in tiles of 64 through two buffers in shared memory. To find the LSE the
// packed rows stay and the keys go past; to sum the columns it is the other way round, so that in both the numbers that are
// added up meet in the same thread.
#pragma once

#include <cfloat>
#include <climits>
#include <cmath>

#include "adatp/arguments.h"
#include "adatp/cuda/block.cuh"
#include "adatp/cuda/divisor.cuh"

namespace adatp::cuda {

// What is scored, and where the intermediate results go.
struct Scoring {
  Attention attention;  // 16-bit; rows of query and key with an element stride of 1, aligned to 16 bytes
  const float* lse;     // natural logarithm; null if it is to be computed
  int64_t lse_strides[3];
  int32_t first, columns;  // the key coordinate of the first column, and how many there are
  float scale_log2;        // the scale times log2(e); `place` sets this and the rest
  int32_t group, packed_rows, split_keys, split_rows;
  // What the work is divided by: text rows, heads, splits, and blocks of what stays in each phase.
  Divisor rows, query_heads, kv_heads, key_splits, row_splits, row_blocks, column_blocks;
  float* partial_lse;   // [B, Hkv, packed rows, lse_pitch], base 2, of which key_splits are there; −∞ for who does not count
  int32_t lse_pitch;    // a multiple of four
  float* partial_sums;  // [B, row_splits, Hkv, columns]
};

namespace detail {

constexpr int STAYING = 128, PASSING = 64;
// A warp multiplies 32 rows that stay with one half of every tile that passes.
constexpr int GROUPS = STAYING / 32, HALVES = WARPS / GROUPS, HALF = PASSING / HALVES;
// At most so many key splits; the LSE of a row over all of them is put together by four lanes.
constexpr int MOST_SPLITS = 16, LSE_LANES = THREADS / PASSING;
static_assert(MOST_SPLITS == 4 * LSE_LANES && WARP % LSE_LANES == 0, "four numbers for each lane");
constexpr float LOG2_OF_E = 1.4426950408889634f;

// Elements from row to row in shared memory: eight successive rows lie in different banks.
template <int DIM>
constexpr int PITCH = DIM + 8;

struct alignas(16) Four {
  float of[4];
};

// Shared memory of a product: tiles; of each row in a tile, and of each that stays, up to which key it sees, or which key it
// is; the LSE of a tile's rows, and their parts, of a tile later; what the halves exchange.
template <int DIM>
struct ProductMemory {
  uint16_t tiles[2][PASSING * PITCH<DIM>];
  int32_t bounds[2][PASSING], staying_bounds[STAYING];
  float lse[2][PASSING];
  Four partial_lse[2][PASSING][LSE_LANES];
  float exchange[STAYING][2];
};

// The packed rows of one key head.
struct PackedRows {
  const uint16_t* data;
  int64_t head_stride, row_stride;
  const Divisor& rows;
  int end;  // packed rows in all, or up to where they are taken

  ADATP_DEVICE PackedRows(const Scoring& s, int batch, int head, int end_row)
      : data(static_cast<const uint16_t*>(s.attention.query) + batch * s.attention.query_strides[0] +
             head * s.group * s.attention.query_strides[1]),
        head_stride(s.attention.query_strides[1]),
        row_stride(s.attention.query_strides[2]),
        rows(s.rows),
        end(end_row) {}
  ADATP_DEVICE const uint16_t* row(int r) const {
    const int query_head = rows.quotient(r);
    // Unsigned, for half the instructions of the product.
    return data + uint32_t(query_head) * head_stride + uint32_t(rows.remainder(r, query_head)) * row_stride;
  }
};

// The keys of one head from some coordinate on.
struct Keys {
  const uint16_t* data;
  int64_t stride;
  int end;

  ADATP_DEVICE Keys(const Attention& a, int batch, int head, int first, int end_key)
      : data(static_cast<const uint16_t*>(a.key) + batch * a.key_strides[0] + head * a.key_strides[1] +
             first * a.key_strides[2]),
        stride(a.key_strides[2]),
        end(end_key) {}
  ADATP_DEVICE const uint16_t* row(int k) const { return data + uint32_t(k) * stride; }
};

// The rows [first, first + COUNT) of an operand into a tile; zeros behind its end, which is behind its first row. Eight threads
// share 128 bytes of a row, or four 64 bytes, and each row's place is found once by each of them.
template <int DIM, int COUNT, class Operand>
ADATP_DEVICE void load_tile(uint16_t* tile, const Operand& operand, int first) {
  constexpr int PIECES = DIM / 8, LANES = PIECES % 8 == 0 ? 8 : 4, TOGETHER = THREADS / LANES;
  static_assert(PIECES % LANES == 0 && COUNT % TOGETHER == 0, "all threads copy equally much");
  const int own = int(uint32_t(thread_index()) / LANES), piece = 8 * int(uint32_t(thread_index()) % LANES);
#pragma unroll
  for (int i = 0; i < COUNT; i += TOGETHER) {
    const int row = first + own + i;
    const bool in_range = row < operand.end;
    const uint16_t* source = operand.row(in_range ? row : operand.end - 1) + piece;
    uint16_t* target = tile + (own + i) * PITCH<DIM> + piece;
#pragma unroll
    for (int p = 0; p < PIECES; p += LANES) copy_async(target + 8 * p, source + 8 * p, in_range);
  }
}

// The rows [first, first + STAYING) of one operand times all rows [begin, end) of the other. `visit(sums, buffer, row)` sees
// sums[m][c] of the product: of the row that stays 32 · group + 16 m + lane / 4 + 8 (c / 2), and of the tile's row
// `row` + c % 2. All threads call `prepare(buffer, row)` for the tile that passes after the current one, and before that, by
// one tile, `fetch(buffer, row)`: what this copies has arrived when that is called. When the function returns other threads may
// still read the tiles; the caller's next barrier is before whatever writes there.
template <DType TYPE, int STEPS, class Staying, class Passing, class Fetch, class Prepare, class Visit>
ADATP_DEVICE void multiply(ProductMemory<16 * STEPS>& memory, const Staying& staying, int first, const Passing& passing,
                           int begin, int end, Fetch fetch, Prepare prepare, const Visit& visit) {
  constexpr int DIM = 16 * STEPS;
  static_assert(STAYING == 2 * PASSING, "what stays is loaded through both buffers");
  static_assert(STEPS % 2 == 0, "four matrices are two steps");
  const int lane = lane_index(), group = warp_index() % GROUPS, half = warp_index() / GROUPS;
  load_tile<DIM, STAYING>(memory.tiles[0], staying, first);
  if (begin < end) fetch(0, begin);
  copy_wait();
  block_barrier();
  uint32_t fragments[2][STEPS][4];
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int k = 0; k < STEPS; ++k)
      load_matrices(fragments[m][k],
                    memory.tiles[0] + (32 * group + 16 * m + lane % 16) * PITCH<DIM> + 16 * k + 8 * (lane / 16));
  if (begin < end) prepare(0, begin);
  block_barrier();

  if (begin < end) load_tile<DIM, PASSING>(memory.tiles[0], passing, begin);
  if (begin + PASSING < end) fetch(1, begin + PASSING);
  int buffer = 0;
  for (int row = begin; row < end; row += PASSING, buffer ^= 1) {
    // Behind this barrier the tile is there, and everyone is done with the one before it, in the other buffer.
    copy_wait();
    block_barrier();
    const int next = row + PASSING;
    if (next < end) {
      load_tile<DIM, PASSING>(memory.tiles[buffer ^ 1], passing, next);
      if (next + PASSING < end) fetch(buffer, next + PASSING);
      prepare(buffer ^ 1, next);
    }
    const uint16_t* matrix = memory.tiles[buffer] + (HALF * half + lane % 8) * PITCH<DIM> + 8 * (lane / 8);
    int at = HALF * half + 2 * (lane % 4);
#pragma unroll 2
    for (int i = 0; i < HALF; i += 8, at += 8, matrix += 8 * PITCH<DIM>) {
      float sums[2][4] = {};
#pragma unroll
      for (int k = 0; k < STEPS; k += 2) {
        uint32_t b[4];
        load_matrices(b, matrix + 16 * k);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply_add<TYPE>(sums[m], fragments[m][k], b[0], b[1]);
          multiply_add<TYPE>(sums[m], fragments[m][k + 1], b[2], b[3]);
        }
      }
      visit(sums, buffer, at);
    }
  }
}

// Which of the rows that stay this thread holds: four, `i` from 0 to 3.
ADATP_DEVICE int staying_row(int i) { return 32 * (warp_index() % GROUPS) + 8 * i + lane_index() / 4; }

// An LSE in base 2 as a maximum, always finite so that ±∞ minus it stays that, and a sum of powers relative to it.
struct RunningSum {
  float maximum = -FLT_MAX, sum = 0.0f;

  ADATP_DEVICE void add(float other_maximum, float other_sum) {
    const float larger = fminf(fmaxf(maximum, other_maximum), FLT_MAX);
    sum = sum * exp2_fast(maximum - larger) + other_sum * exp2_fast(other_maximum - larger);
    maximum = larger;
  }
  ADATP_DEVICE float lse() const { return maximum + log2_fast(sum); }
};

// What one unit of work is about: the rows that stay, from `first` on, and one split of those that pass.
struct Unit {
  int first, split, head, batch;

  ADATP_DEVICE Unit(int unit, const Divisor& blocks, const Divisor& splits, const Divisor& heads) {
    const int block_row = blocks.quotient(unit), head_row = splits.quotient(block_row);
    batch = heads.quotient(head_row);
    head = heads.remainder(head_row, batch);
    split = splits.remainder(block_row, head_row);
    first = STAYING * blocks.remainder(unit, block_row);
  }
};

// Whether a text row counts.
ADATP_DEVICE bool counts(const Attention& a, int batch, int text_row) {
  return !a.query_mask || a.query_mask[batch * a.query_mask_strides[0] + text_row * a.query_mask_strides[1]];
}

}  // namespace detail

// Phase 1, if the LSE is given: every row's as its only part.
ADATP_DEVICE void take_lse(const Scoring& s) {
  const Attention& a = s.attention;
  const int heads = int(a.batch) * s.query_heads.number;
  for (int i = block_index(); i < heads; i += num_blocks()) {
    const int batch = s.query_heads.quotient(i), head = s.query_heads.remainder(i, batch);
    const float* lse = s.lse + batch * s.lse_strides[0] + head * s.lse_strides[1];
    for (int row = thread_index(); row < s.rows.number; row += THREADS)
      s.partial_lse[(int64_t(i) * s.rows.number + row) * s.lse_pitch] =
          detail::counts(a, batch, row) ? detail::LOG2_OF_E * lse[row * s.lse_strides[2]] : -INFINITY;
  }
}

// Phase 1, if it is not: the LSE of every packed row over each split of the keys.
template <DType TYPE, int STEPS>
ADATP_DEVICE void row_lse(const Scoring& s, char* shared) {
  using namespace detail;
  auto& memory = *reinterpret_cast<ProductMemory<16 * STEPS>*>(shared);
  const Attention& a = s.attention;
  // No row sees beyond the last one's own key.
  const int seen = int(a.query_start + a.rows < a.keys ? a.query_start + a.rows : a.keys);
  const int units = int(a.batch) * s.kv_heads.number * s.key_splits.number * s.row_blocks.number;
  for (int unit = block_index(); unit < units; unit += num_blocks()) {
    auto [first, split, head, batch] = Unit(unit, s.row_blocks, s.key_splits, s.kv_heads);
    const int begin = split * s.split_keys, end = begin + s.split_keys < seen ? begin + s.split_keys : seen;
    if (thread_index() < STAYING)
      memory.staying_bounds[thread_index()] = int(a.query_start) + s.rows.remainder(first + thread_index());
    RunningSum running[4];

    const auto prepare = [&, batch = batch](int buffer, int key) mutable {
      if (thread_index() >= PASSING) return;
      compute_again(batch);
      key += thread_index();
      const bool visible = key < end && (!a.key_mask || a.key_mask[batch * a.key_mask_strides[0] + key * a.key_mask_strides[1]]);
      memory.bounds[buffer][thread_index()] = visible ? key : INT_MAX;
    };
    const auto visit = [&](const float (&sums)[2][4], int buffer, int at) {
      const int* keys = memory.bounds[buffer] + at;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int last_seen = memory.staying_bounds[staying_row(i)];
        float x[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) x[j] = keys[j] <= last_seen ? sums[i / 2][2 * (i % 2) + j] * s.scale_log2 : -INFINITY;
        RunningSum& r = running[i];
        const float larger = fminf(fmaxf(fmaxf(x[0], x[1]), r.maximum), FLT_MAX);
        if (larger > r.maximum) {  // ever more rarely
          r.sum *= exp2_fast(r.maximum - larger);
          r.maximum = larger;
        }
        r.sum += exp2_fast(x[0] - r.maximum) + exp2_fast(x[1] - r.maximum);
      }
    };
    multiply<TYPE, STEPS>(memory, PackedRows(s, batch, head, s.packed_rows), first, Keys(a, batch, head, 0, end), begin, end,
                          [](int, int) {}, prepare, visit);

    compute_again(unit);
    const Unit done(unit, s.row_blocks, s.key_splits, s.kv_heads);
    // The four lanes that share a row, then the halves of the tiles.
#pragma unroll
    for (int i = 0; i < 4; ++i)
      for (int lanes = 1; lanes < 4; lanes *= 2)
        running[i].add(shuffle_xor(running[i].maximum, lanes), shuffle_xor(running[i].sum, lanes));
    const bool second_half = warp_index() >= GROUPS;
    if (second_half && lane_index() % 4 == 0)
      for (int i = 0; i < 4; ++i) {
        memory.exchange[staying_row(i)][0] = running[i].maximum;
        memory.exchange[staying_row(i)][1] = running[i].sum;
      }
    block_barrier();
    if (!second_half && lane_index() % 4 == 0)
      for (int i = 0; i < 4; ++i) {
        const int row = done.first + staying_row(i);
        running[i].add(memory.exchange[staying_row(i)][0], memory.exchange[staying_row(i)][1]);
        if (row < s.packed_rows)
          s.partial_lse[((int64_t(done.batch) * s.kv_heads.number + done.head) * s.packed_rows + row) * s.lse_pitch + done.split] =
              counts(a, done.batch, s.rows.remainder(row)) ? running[i].lse() : -INFINITY;
      }
  }
}

// Phase 2: the probabilities of every column, summed over each split of a key head's packed rows.
template <DType TYPE, int STEPS>
ADATP_DEVICE void column_sums(const Scoring& s, char* shared) {
  using namespace detail;
  auto& memory = *reinterpret_cast<ProductMemory<16 * STEPS>*>(shared);
  const Attention& a = s.attention;
  const int units = int(a.batch) * s.kv_heads.number * s.row_splits.number * s.column_blocks.number;
  const int row_of_tile = int(uint32_t(thread_index()) / LSE_LANES), lse_lane = int(uint32_t(thread_index()) % LSE_LANES);
  for (int unit = block_index(); unit < units; unit += num_blocks()) {
    auto [first, split, head, batch] = Unit(unit, s.column_blocks, s.row_splits, s.kv_heads);
    const int begin = split * s.split_rows;
    const int end = begin + s.split_rows < s.packed_rows ? begin + s.split_rows : s.packed_rows;
    const int key = s.first + first + staying_row(0);  // and the eighth, sixteenth, twenty-fourth behind it
    float total[4] = {};

    // The parts of a row's LSE lie side by side.
    const float* parts = s.partial_lse + (int64_t(batch) * s.kv_heads.number + head) * s.packed_rows * s.lse_pitch;
    const auto fetch = [&](int buffer, int packed) {
      packed += row_of_tile;
      if (4 * lse_lane < s.lse_pitch && packed < end)
        copy_async(&memory.partial_lse[buffer][row_of_tile][lse_lane], parts + int64_t(packed) * s.lse_pitch + 4 * lse_lane, true);
    };
    const auto prepare = [&](int buffer, int packed) {
      packed += row_of_tile;
      const Four four = memory.partial_lse[buffer][row_of_tile][lse_lane];
      float part[4], maximum = -FLT_MAX, sum = 0.0f;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        part[i] = 4 * lse_lane + i < s.key_splits.number && packed < end ? four.of[i] : -INFINITY;
        maximum = fmaxf(maximum, part[i]);
      }
      for (int lanes = 1; lanes < LSE_LANES; lanes *= 2) maximum = fmaxf(maximum, shuffle_xor(maximum, lanes));
      maximum = fminf(maximum, FLT_MAX);  // finite, as in a RunningSum
#pragma unroll
      for (int i = 0; i < 4; ++i) sum += exp2_fast(part[i] - maximum);
      for (int lanes = 1; lanes < LSE_LANES; lanes *= 2) sum += shuffle_xor(sum, lanes);
      if (lse_lane != 0) return;
      const float lse = maximum + log2_fast(sum);
      memory.lse[buffer][row_of_tile] = lse;
      // Who sees nothing adds nothing.
      memory.bounds[buffer][row_of_tile] = lse == -INFINITY ? INT_MIN : int(a.query_start) + s.rows.remainder(packed);
    };
    const auto visit = [&](const float (&sums)[2][4], int buffer, int at) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int last_seen = memory.bounds[buffer][at + j];
        const float lse = memory.lse[buffer][at + j];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float probability = exp2_fast(sums[i / 2][2 * (i % 2) + j] * s.scale_log2 - lse);
          total[i] += key + 8 * i <= last_seen ? probability : 0.0f;
        }
      }
    };
    multiply<TYPE, STEPS>(memory, Keys(a, batch, head, s.first, s.columns), first, PackedRows(s, batch, head, end), begin,
                          end, fetch, prepare, visit);

    compute_again(unit);
    const Unit done(unit, s.column_blocks, s.row_splits, s.kv_heads);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      for (int lanes = 1; lanes < 4; lanes *= 2) total[i] += shuffle_xor(total[i], lanes);
    const bool second_half = warp_index() >= GROUPS;
    if (second_half && lane_index() % 4 == 0)
      for (int i = 0; i < 4; ++i) memory.exchange[staying_row(i)][0] = total[i];
    block_barrier();
    if (!second_half && lane_index() % 4 == 0)
      for (int i = 0; i < 4; ++i) {
        const int column = done.first + staying_row(i);
        if (column >= s.columns) continue;
        const bool hidden = a.key_mask && !a.key_mask[done.batch * a.key_mask_strides[0] + (s.first + column) * a.key_mask_strides[1]];
        s.partial_sums[((int64_t(done.batch) * s.row_splits.number + done.split) * s.kv_heads.number + done.head) * s.columns + column] =
            hidden ? 0.0f : total[i] + memory.exchange[staying_row(i)][0];
      }
  }
}

}  // namespace adatp::cuda
