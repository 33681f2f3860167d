// A whole pruning stage on a GPU as one kernel: score, debias and select, compact and gather, with a barrier of the whole grid
// between the phases.
#pragma once

#include "adatp/cuda/attention.cuh"
#include "adatp/cuda/compact.cuh"
#include "adatp/cuda/select.cuh"

namespace adatp::cuda {

struct Stage {
  Scoring scoring;  // not used if scores are given
  Selecting selecting;
  Compacting compacting;
  float* scores;     // [B, columns], or null if the stage does not end with them
  uint32_t* zeroed;  // by the first phase
  int64_t zeroed_words;
  int32_t first_phase, last_phase;
};

// STEPS is the head dim / 16, or 0 if scores are given.
template <DType TYPE, int STEPS>
ADATP_KERNEL(THREADS, 2) void stage_kernel(ADATP_CONSTANT Stage stage) {
  char* shared = shared_memory();
  const auto runs = [&](int phase) { return stage.first_phase <= phase && phase <= stage.last_phase; };
  const auto barrier_before = [&](int phase) {
    if (stage.first_phase < phase && phase <= stage.last_phase) grid_barrier();
  };
  if (runs(1)) {
#pragma unroll 1  // more at a time would take a division
    for (int64_t i = int64_t(block_index()) * THREADS + thread_index(); i < stage.zeroed_words; i += num_blocks() * THREADS)
      stage.zeroed[i] = 0;
    if constexpr (STEPS > 0)
      stage.scoring.lse ? take_lse(stage.scoring) : row_lse<TYPE, STEPS>(stage.scoring, shared);
  }
  barrier_before(2);
  if (runs(2)) {
    if (!stage.scores) find_ranges(stage.selecting);
    if constexpr (STEPS > 0) column_sums<TYPE, STEPS>(stage.scoring, shared);
  }
  barrier_before(3);
  if (runs(3)) {
    if (stage.scores)
      write_scores(stage.selecting, stage.scores);
    else
      select(stage.selecting, shared);
  }
  barrier_before(4);
  if (runs(4)) compact(stage.compacting, shared);
}

}  // namespace adatp::cuda
