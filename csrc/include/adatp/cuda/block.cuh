// How the kernels' threads stand: blocks of eight warps, each of which knows its place, and sums over a whole block.
#pragma once

#include "adatp/cuda/device.cuh"

namespace adatp::cuda {

constexpr int THREADS = 256, WARPS = THREADS / WARP;

ADATP_DEVICE int warp_index() { return int(uint32_t(thread_index()) / WARP); }
ADATP_DEVICE int lane_index() { return int(uint32_t(thread_index()) % WARP); }

ADATP_HOST_DEVICE constexpr int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// The sum of the block's values up to this thread's own, and of all of them. `scratch` is shared, of WARPS numbers, and
// free again when the function returns.
struct Sums {
  uint32_t up_to_own, all;
};

ADATP_DEVICE Sums block_sums(uint32_t value, uint32_t* scratch) {
  for (int lanes = 1; lanes < WARP; lanes *= 2) {
    const uint32_t other = shuffle_up(value, lanes);
    if (lane_index() >= lanes) value += other;
  }
  if (lane_index() == WARP - 1) scratch[warp_index()] = value;
  block_barrier();
  uint32_t all = 0;
  for (int warp = 0; warp < WARPS; ++warp) {
    if (warp == warp_index()) value += all;
    all += scratch[warp];
  }
  block_barrier();
  return {value, all};
}

}  // namespace adatp::cuda
