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

namespace adatp::cuda {

// What is scored, and where the intermediate results go.
struct Scoring {
  Attention attention;  // 16-bit; rows of query and key with an element stride of 1, aligned to 16 bytes
  const float* lse;     // natural logarithm; null if it is to be computed
  int64_t lse_strides[3];
  int32_t first, columns;  // the key coordinate of the first column, and how many there are
  float scale_log2;        // the scale times log2(e); `place` sets this and the rest
  int32_t key_splits, split_keys, row_splits, split_rows;
  float* partial_lse;   // [B, Hkv, packed rows, key_splits], base 2
  float* partial_sums;  // [B, row_splits, Hkv, columns]
};

namespace detail {

constexpr int STAYING = 128, PASSING = 64;
// A warp multiplies 32 rows that stay with one half of every tile that passes.
constexpr int GROUPS = STAYING / 32, HALVES = WARPS / GROUPS, HALF = PASSING / HALVES;
constexpr float LOG2_OF_E = 1.4426950408889634f;

// Elements from row to row in shared memory: eight successive rows lie in different banks.
template <int DIM>
constexpr int PITCH = DIM + 8;

// Shared memory of a product: tiles; of each row in a tile, and of each that stays, up to which key it sees, or which key it
// is; the LSE of a tile's rows; what the halves exchange.
template <int DIM>
struct ProductMemory {
  uint16_t tiles[2][PASSING * PITCH<DIM>];
  int32_t bounds[2][PASSING], staying_bounds[STAYING];
  float lse[2][PASSING];
  float exchange[STAYING][2];
};

// The packed rows of one key head.
struct PackedRows {
  const uint16_t* data;
  int64_t head_stride, row_stride;
  int rows, end;  // text rows; packed rows in all, or up to where they are taken

  ADATP_DEVICE PackedRows(const Attention& a, int batch, int head, int end_row)
      : data(static_cast<const uint16_t*>(a.query) + batch * a.query_strides[0] +
             head * (a.query_heads / a.kv_heads) * a.query_strides[1]),
        head_stride(a.query_strides[1]),
        row_stride(a.query_strides[2]),
        rows(int(a.rows)),
        end(end_row) {}
  ADATP_DEVICE const uint16_t* row(int r) const { return data + (r / rows) * head_stride + (r % rows) * row_stride; }
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
  ADATP_DEVICE const uint16_t* row(int k) const { return data + k * stride; }
};

// The rows [first, first + COUNT) of an operand into a tile; zeros behind its end.
template <int DIM, int COUNT, class Operand>
ADATP_DEVICE void load_tile(uint16_t* tile, const Operand& operand, int first) {
  constexpr int PIECES = DIM / 8;
#pragma unroll 1
  for (int i = thread_index(); i < COUNT * PIECES; i += THREADS) {
    const int row = i / PIECES, piece = 8 * (i % PIECES);
    const bool in_range = first + row < operand.end;
    copy_async(tile + row * PITCH<DIM> + piece, in_range ? operand.row(first + row) + piece : operand.data, in_range);
  }
}

// The rows [first, first + STAYING) of one operand times all rows [begin, end) of the other. `prepare(buffer, row)` is
// called by one thread for each row of a tile that is about to pass. `visit(sums, buffer, row)` sees sums[m][c] of the
// product: of the row that stays 32 · group + 16 m + lane / 4 + 8 (c / 2), and of the tile's row `row` + c % 2.
template <DType TYPE, int STEPS, class Staying, class Passing, class Prepare, class Visit>
ADATP_DEVICE void multiply(ProductMemory<16 * STEPS>& memory, const Staying& staying, int first, const Passing& passing,
                           int begin, int end, Prepare prepare, const Visit& visit) {
  constexpr int DIM = 16 * STEPS;
  static_assert(STAYING == 2 * PASSING, "what stays is loaded through both buffers");
  static_assert(STEPS % 2 == 0, "four matrices are two steps");
  const int lane = lane_index(), group = warp_index() % GROUPS, half = warp_index() / GROUPS;
  load_tile<DIM, STAYING>(memory.tiles[0], staying, first);
  copy_commit();
  copy_wait<0>();
  block_barrier();
  uint32_t fragments[2][STEPS][4];
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int k = 0; k < STEPS; ++k)
      load_matrices(fragments[m][k],
                    memory.tiles[0] + (32 * group + 16 * m + lane % 16) * PITCH<DIM> + 16 * k + 8 * (lane / 16));
  block_barrier();

  const auto load = [&](int buffer, int row) {
    load_tile<DIM, PASSING>(memory.tiles[buffer], passing, row);
    if (thread_index() < PASSING) prepare(buffer, row);
  };
  if (begin < end) load(0, begin);
  copy_commit();
  int buffer = 0;
  for (int row = begin; row < end; row += PASSING, buffer ^= 1) {
    if (row + PASSING < end) load(buffer ^ 1, row + PASSING);
    copy_commit();
    copy_wait<1>();
    block_barrier();
#pragma unroll 1
    for (int at = HALF * half; at < HALF * (half + 1); at += 8) {
      const uint16_t* matrix = memory.tiles[buffer] + (at + lane % 8) * PITCH<DIM> + 8 * (lane / 8);
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
      visit(sums, buffer, at + 2 * (lane % 4));
    }
    block_barrier();
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

  ADATP_DEVICE Unit(int unit, int blocks, int splits, int heads)
      : first(unit % blocks * STAYING),
        split(unit / blocks % splits),
        head(unit / blocks / splits % heads),
        batch(unit / blocks / splits / heads) {}
};

// The LSE of a packed row in base 2.
ADATP_DEVICE float lse_of_row(const Scoring& s, int batch, int head, int row) {
  const Attention& a = s.attention;
  const int rows = int(a.rows), group = int(a.query_heads / a.kv_heads);
  if (s.lse) {
    const int64_t query_head = head * group + row / rows;
    return LOG2_OF_E *
           s.lse[batch * s.lse_strides[0] + query_head * s.lse_strides[1] + (row % rows) * s.lse_strides[2]];
  }
  const float* partial = s.partial_lse + (int64_t(batch * a.kv_heads + head) * group * rows + row) * s.key_splits;
  RunningSum total;
#pragma unroll 1
  for (int split = 0; split < s.key_splits; ++split) total.add(partial[split], 1.0f);
  return total.lse();
}

}  // namespace detail

// Phase 1, unless the LSE is given: the LSE of every packed row over each split of the keys.
template <DType TYPE, int STEPS>
ADATP_DEVICE void row_lse(const Scoring& s, char* shared) {
  using namespace detail;
  auto& memory = *reinterpret_cast<ProductMemory<16 * STEPS>*>(shared);
  const Attention& a = s.attention;
  const int rows = int(a.rows), packed_rows = int(a.query_heads / a.kv_heads) * rows;
  // No row sees beyond the last one's own key.
  const int seen = int(a.query_start + a.rows < a.keys ? a.query_start + a.rows : a.keys);
  const int row_blocks = int(ceil_div(packed_rows, STAYING));
  const int kv_heads = int(a.kv_heads), units = int(a.batch) * kv_heads * s.key_splits * row_blocks;
  for (int unit = block_index(); unit < units; unit += num_blocks()) {
    auto [first, split, head, batch] = Unit(unit, row_blocks, s.key_splits, kv_heads);
    const int begin = split * s.split_keys, end = begin + s.split_keys < seen ? begin + s.split_keys : seen;
    if (thread_index() < STAYING) memory.staying_bounds[thread_index()] = int(a.query_start) + (first + thread_index()) % rows;
    RunningSum running[4];

    const auto prepare = [&, batch = batch](int buffer, int key) mutable {
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
    multiply<TYPE, STEPS>(memory, PackedRows(a, batch, head, packed_rows), first, Keys(a, batch, head, 0, end), begin, end,
                          prepare, visit);

    compute_again(unit);
    const Unit done(unit, row_blocks, s.key_splits, kv_heads);
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
        if (row < packed_rows)
          s.partial_lse[((int64_t(done.batch) * kv_heads + done.head) * packed_rows + row) * s.key_splits + done.split] =
              running[i].lse();
      }
  }
}

// Phase 2: the probabilities of every column, summed over each split of a key head's packed rows.
template <DType TYPE, int STEPS>
ADATP_DEVICE void column_sums(const Scoring& s, char* shared) {
  using namespace detail;
  auto& memory = *reinterpret_cast<ProductMemory<16 * STEPS>*>(shared);
  const Attention& a = s.attention;
  const int rows = int(a.rows), packed_rows = int(a.query_heads / a.kv_heads) * rows;
  const int column_blocks = int(ceil_div(s.columns, STAYING));
  const int kv_heads = int(a.kv_heads), units = int(a.batch) * kv_heads * s.row_splits * column_blocks;
  for (int unit = block_index(); unit < units; unit += num_blocks()) {
    auto [first, split, head, batch] = Unit(unit, column_blocks, s.row_splits, kv_heads);
    const int begin = split * s.split_rows;
    const int end = begin + s.split_rows < packed_rows ? begin + s.split_rows : packed_rows;
    const int key = s.first + first + staying_row(0);  // and the eighth, sixteenth, twenty-fourth behind it
    float total[4] = {};

    const auto prepare = [&, batch = batch](int buffer, int packed) mutable {
      compute_again(batch);
      const int r = thread_index(), text_row = (packed + r) % rows;
      bool counts = packed + r < end;
      counts = counts && (!a.query_mask || a.query_mask[batch * a.query_mask_strides[0] + text_row * a.query_mask_strides[1]]);
      const float lse = counts ? lse_of_row(s, batch, head, packed + r) : -INFINITY;
      memory.lse[buffer][r] = lse;
      memory.bounds[buffer][r] = lse == -INFINITY ? INT_MIN : int(a.query_start) + text_row;  // who sees nothing adds nothing
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
    multiply<TYPE, STEPS>(memory, Keys(a, batch, head, s.first, s.columns), first, PackedRows(a, batch, head, end), begin,
                          end, prepare, visit);

    compute_again(unit);
    const Unit done(unit, column_blocks, s.row_splits, kv_heads);
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
        s.partial_sums[((int64_t(done.batch) * s.row_splits + done.split) * kv_heads + done.head) * s.columns + column] =
            hidden ? 0.0f : total[i] + memory.exchange[staying_row(i)][0];
      }
  }
}

}  // namespace adatp::cuda
