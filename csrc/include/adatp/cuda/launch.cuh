// The host's side of a stage: how its work is split, where its intermediate results go, and its launch. That is one,
// cooperative; where blocks cannot wait for each other every phase is a launch of its own.
#pragma once

#include <algorithm>
#include <vector>

#include "adatp/cuda/stage.cuh"

namespace adatp::cuda {

namespace detail {

template <int STEPS>
constexpr int stage_memory() {
  const size_t most = std::max({sizeof(SelectMemory), sizeof(CompactMemory), sizeof(ProductMemory<16 * STEPS>)});
  static_assert(most <= 48 * 1024, "more would have to be asked for");
  return int(most);
}

// Blocks that a large GPU of the day holds at a time. Work is split for it whatever the GPU, so that results are the same
// on all, and whatever the batch, so that a prompt's do not depend on the company it is in.
constexpr int64_t FULL_GPU = 264;

// Into how many parts to split `tiles` steps of each of `blocks` blocks of work, so that all of it takes the fewest.
inline int64_t best_split(int64_t blocks, int64_t tiles) {
  constexpr int64_t OVERHEAD = 2;
  int64_t best = 1, fewest = INT64_MAX;
  for (int64_t split = 1; split <= std::min<int64_t>(tiles, MOST_SPLITS); ++split) {
    const int64_t steps = ceil_div(blocks * split, FULL_GPU) * (ceil_div(tiles, split) + OVERHEAD);
    if (steps < fewest) best = split, fewest = steps;
  }
  return best;
}

// Takes parts of the memory that begins at `begin`, one after the other.
struct Workspace {
  char* begin;
  int64_t bytes = 0;

  template <class T>
  void take(T*& part, int64_t count) {
    part = reinterpret_cast<T*>(begin + bytes);
    bytes += ceil_div(count * int64_t(sizeof(T)), 16) * 16;
  }
};

// How many blocks to give to a segment: one does for a few thousand columns.
inline int team_size(const Selecting& s, int blocks) {
  constexpr int64_t COLUMNS = 4096;
  const int64_t teams = std::max<int64_t>(1, int64_t(s.batch) * s.num_segments);
  const int64_t useful = ceil_div(2 * int64_t(s.columns), std::max(1, s.num_segments) * COLUMNS);
  return int(std::clamp<int64_t>(std::min(blocks / teams, useful), 1, blocks));
}

}  // namespace detail

// A kernel's blocks on the current device, all of which run at the same time.
inline int resident_blocks() { return 2 * current_device().multiprocessors; }

// On the host. Splits the work, points the stage at its workspace, which may be null to find out its size, and returns that
// size in bytes. The workspace is aligned to 16 bytes; nothing need be in it. `fused` says whether blocks may wait for each
// other.
inline int64_t place(Stage& stage, void* workspace, bool fused) {
  Scoring& scoring = stage.scoring;
  Selecting& selecting = stage.selecting;
  detail::Workspace memory{static_cast<char*>(workspace)};
  const int64_t batch = selecting.batch, segments = batch * selecting.num_segments;
  selecting.words = int32_t(ceil_div(selecting.columns, WARP));
  selecting.team_size = fused ? detail::team_size(selecting, resident_blocks()) : 1;

  const auto by = [](int64_t number) { return divide_by(std::max<int64_t>(number, 1)); };
  selecting.by_segments = by(selecting.num_segments), selecting.by_words = by(selecting.words);
  selecting.by_team = by(selecting.team_size), selecting.by_chunks = by(ceil_div(selecting.columns, THREADS));

  memory.take(selecting.kept, batch * selecting.words);
  memory.take(selecting.ranges, segments);
  selecting.teams = nullptr, selecting.best = nullptr;
  if (selecting.team_size > 1) memory.take(selecting.teams, segments);
  if (selecting.dedup != Dedup::off && (selecting.team_size > 1 || selecting.num_positions > detail::SHARED_POSITIONS))
    memory.take(selecting.best, segments * selecting.num_positions);
  stage.zeroed = reinterpret_cast<uint32_t*>(workspace);
  stage.zeroed_words = memory.bytes / int64_t(sizeof(uint32_t));

  memory.take(selecting.orders, batch * selecting.columns);
  if (!selecting.scores) {
    const Attention& a = scoring.attention;
    scoring.scale_log2 = a.scale * detail::LOG2_OF_E;
    const int64_t packed_rows = a.packed_rows(), row_blocks = ceil_div(packed_rows, detail::STAYING);
    const int64_t column_blocks = ceil_div(scoring.columns, detail::STAYING);
    const int64_t seen = std::clamp<int64_t>(a.query_start + a.rows, 0, a.keys);
    const auto divide = [](int64_t blocks_of_work, int64_t rows, Divisor& splits, int32_t& split) {
      const int64_t tiles = std::max<int64_t>(1, ceil_div(rows, detail::PASSING));
      const int64_t each = ceil_div(tiles, detail::best_split(blocks_of_work, tiles));
      splits = divide_by(ceil_div(tiles, each)), split = int32_t(each) * detail::PASSING;
    };
    divide(a.kv_heads * row_blocks, seen, scoring.key_splits, scoring.split_keys);
    divide(a.kv_heads * column_blocks, packed_rows, scoring.row_splits, scoring.split_rows);
    if (scoring.lse) scoring.key_splits = divide_by(1);
    scoring.lse_pitch = int32_t(ceil_div(scoring.key_splits.number, 4) * 4);
    scoring.group = int32_t(a.group()), scoring.packed_rows = int32_t(packed_rows);
    scoring.rows = divide_by(a.rows), scoring.query_heads = divide_by(a.query_heads), scoring.kv_heads = divide_by(a.kv_heads);
    scoring.row_blocks = divide_by(row_blocks), scoring.column_blocks = divide_by(column_blocks);
    memory.take(scoring.partial_lse, a.batch * a.kv_heads * packed_rows * scoring.lse_pitch);
    memory.take(scoring.partial_sums, a.batch * scoring.row_splits.number * a.kv_heads * scoring.columns);
    selecting.partial_sums = scoring.partial_sums;
    selecting.num_sums = scoring.row_splits.number * a.kv_heads;
    selecting.query_heads = a.query_heads;
    selecting.query_mask = a.query_mask;
    std::copy_n(a.query_mask_strides, 2, selecting.query_mask_strides);
    selecting.rows = a.rows;
  }
  Compacting& compacting = stage.compacting;
  compacting.bits = selecting.kept;
  compacting.batch = selecting.batch, compacting.columns = selecting.columns, compacting.words = selecting.words;
  compacting.group_words = int32_t(std::max<int64_t>(1, ceil_div(compacting.words, detail::BIT_GROUPS)));
  compacting.groups = int32_t(ceil_div(compacting.words, compacting.group_words));
  return memory.bytes;
}

namespace detail {

template <DType TYPE, int STEPS>
const char* run_stage(Stage stage, const std::vector<Move>& moves, bool fused, Stream stream) {
  const auto run = [&](int first_phase, int last_phase) {
    stage.first_phase = first_phase, stage.last_phase = last_phase;
    return launch(stage_kernel<TYPE, STEPS>, stage, resident_blocks(), THREADS, stage_memory<STEPS>(), first_phase < last_phase,
                  stream);
  };
  Compacting& compacting = stage.compacting;
  const int last_phase = stage.scores ? 3 : 4;
  size_t moved = 0;
  const auto take_moves = [&] {
    const size_t count = std::min<size_t>(moves.size() - moved, Compacting::MOVES);
    std::copy_n(moves.begin() + int64_t(moved), count, compacting.moves);
    moved += count;
    compacting.units = compacting.kept ? int32_t(ceil_div(compacting.tokens, detail::UNIT_TOKENS)) : 0;
    for (size_t m = 0; m < count; ++m) compacting.units += compacting.moves[m].units;
  };
  take_moves();
  const char* error = nullptr;
  if (fused)
    error = run(1, last_phase);
  else
    for (int phase = 1; phase <= last_phase && !error; ++phase) error = run(phase, phase);
  compacting.kept = nullptr;  // listed
  while (!error && moved < moves.size()) {
    take_moves();
    error = run(last_phase, last_phase);
  }
  return error;
}

}  // namespace detail

// On the host: runs a stage that has its place, and moves `moves`. Returns null, or what is wrong.
inline const char* run_stage(const Stage& stage, const std::vector<Move>& moves, bool fused, Stream stream) {
  if (stage.selecting.scores) return detail::run_stage<DType::bfloat16, 0>(stage, moves, fused, stream);
  const auto of_type = [&]<DType TYPE>() -> const char* {
    switch (stage.scoring.attention.dim) {
      case 64: return detail::run_stage<TYPE, 4>(stage, moves, fused, stream);
      case 96: return detail::run_stage<TYPE, 6>(stage, moves, fused, stream);
      case 128: return detail::run_stage<TYPE, 8>(stage, moves, fused, stream);
      default: return "the head dim is none of 64, 96, 128";
    }
  };
  return stage.scoring.attention.dtype == DType::bfloat16 ? of_type.template operator()<DType::bfloat16>()
                                                          : of_type.template operator()<DType::float16>();
}

}  // namespace adatp::cuda
