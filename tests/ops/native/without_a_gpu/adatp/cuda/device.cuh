// The machine that csrc/include/adatp/cuda/device.cuh gives the CUDA kernels, played by one thread of a CPU.
//
// Every thread of the grid is a fibre, a stack of its own, and they take turns in an order drawn anew at every round.
// Whoever waits, at a barrier or for the lanes of its warp, gives its turn away. If nobody can go on the kernel would hang
// on a GPU, and the process ends here. What comes of missing barriers depends on the turns, so a test draws several.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "adatp/common.h"

#define ADATP_KERNEL(threads, blocks_per_multiprocessor)
#define ADATP_DEVICE inline
#define ADATP_HOST_DEVICE
#define ADATP_CONSTANT const

namespace adatp::cuda {

constexpr int WARP = 32;

namespace machine {

// Threads that have arrived at a barrier, and how often all have.
struct Barrier {
  int arrived = 0;
  uint64_t round = 0;
};

struct Lane {
  char bytes[64];
};

struct Warp {
  Barrier barrier;
  Lane lanes[WARP];
};

struct Block {
  int index;
  std::unique_ptr<char[]> shared;
  Barrier barrier;
  std::vector<Warp> warps;
};

struct Fibre {
  Block* block;
  int thread;
  std::unique_ptr<char[]> stack;
  ucontext_t start;
  jmp_buf turn;
  bool begun = false, done = false;
  std::vector<std::function<void()>> copies;  // they land as late as they may
};

inline ucontext_t scheduler;
inline jmp_buf scheduler_turn;
inline Fibre* now;
inline std::function<void()> body;
inline int num_blocks, num_threads;
inline bool cooperative, progress;
inline Barrier grid;
inline uint64_t seed = 0;
constexpr size_t STACK = 1 << 16;
constexpr int BEHIND = 4096;  // bytes behind a block's shared memory, which nobody may write

[[noreturn]] inline void fail(const char* message) {
  std::fprintf(stderr, "the machine: %s\n", message);
  std::abort();
}

inline void give_turn() {
  if (!_setjmp(now->turn)) _longjmp(scheduler_turn, 1);
}

inline void wait_at(Barrier& barrier, int expected) {
  const uint64_t round = barrier.round;
  progress = true;
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.round;
  }
  while (barrier.round == round) give_turn();
}

inline void enter() {
  body();
  now->done = progress = true;
  _longjmp(scheduler_turn, 1);
}

// Some warps sleep until the others can't go on without them, so that these get ahead as far as nothing stops them.
inline std::vector<bool> sleeps;

inline void next_sleepers(std::mt19937_64& random) {
  const bool nobody = std::find(sleeps.begin(), sleeps.end(), true) == sleeps.end();
  if (!progress && nobody) fail("all threads wait");
  if (!progress)
    sleeps.assign(sleeps.size(), false);
  else if (nobody)
    for (size_t w = 0; w < sleeps.size(); ++w) sleeps[w] = random() % 2;
}

inline char* aligned(char* address) { return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(address) + 15) / 16 * 16); }

inline void run(int blocks, int threads, int shared_bytes, bool may_wait) {
  num_blocks = blocks, num_threads = threads, cooperative = may_wait, grid = {};
  std::vector<Block> all(blocks);
  std::vector<Fibre> fibres(size_t(blocks) * threads);
  for (int b = 0; b < blocks; ++b) {
    all[b].index = b;
    all[b].shared.reset(new char[shared_bytes + 16 + BEHIND]);
    std::memset(all[b].shared.get(), 0xAB, shared_bytes + 16 + BEHIND);
    all[b].warps.resize(threads / WARP);
    for (int t = 0; t < threads; ++t) {
      Fibre& fibre = fibres[size_t(b) * threads + t];
      fibre.block = &all[b], fibre.thread = t;
      fibre.stack.reset(new char[STACK]);
    }
  }
  std::mt19937_64 random(seed);
  std::vector<Fibre*> order;
  for (Fibre& fibre : fibres) order.push_back(&fibre);
  sleeps.assign(size_t(blocks) * threads / WARP, false);
  while (!order.empty()) {
    // Not all orders, but enough to catch what depends on one: blocks and threads forwards, backwards, shuffled.
    if (const auto draw = random() % 4; draw == 0)
      std::shuffle(order.begin(), order.end(), random);
    else if (draw == 1)
      std::reverse(order.begin(), order.end());
    progress = false;
    for (Fibre* fibre : order) {
      if (sleeps[(size_t(fibre->block->index) * threads + fibre->thread) / WARP]) continue;
      now = fibre;
      if (_setjmp(scheduler_turn)) continue;
      if (fibre->begun) _longjmp(fibre->turn, 1);
      fibre->begun = true;
      getcontext(&fibre->start);
      fibre->start.uc_stack.ss_sp = fibre->stack.get();
      fibre->start.uc_stack.ss_size = STACK;
      fibre->start.uc_link = nullptr;
      makecontext(&fibre->start, enter, 0);
      setcontext(&fibre->start);
    }
    next_sleepers(random);
    std::erase_if(order, [](const Fibre* fibre) { return fibre->done; });
  }
  for (const Block& block : all)
    for (int i = 0; i < BEHIND; ++i)
      if (aligned(block.shared.get())[shared_bytes + i] != char(0xAB)) fail("a write behind the shared memory");
}

inline Warp& warp() { return now->block->warps[now->thread / WARP]; }

// What every lane of the warp hands in, to `f`, which makes of all of them what this lane gets.
template <class T, class F>
auto exchange(const T& value, const F& f) {
  static_assert(sizeof(T) <= sizeof(Lane));
  Warp& own = warp();
  std::memcpy(&own.lanes[now->thread % WARP], &value, sizeof(T));
  wait_at(own.barrier, WARP);
  const auto result = f([&](int lane) {
    T other;
    std::memcpy(&other, &own.lanes[lane], sizeof(T));
    return other;
  });
  wait_at(own.barrier, WARP);
  return result;
}

}  // namespace machine

inline int thread_index() { return machine::now->thread; }
inline int block_index() { return machine::now->block->index; }
inline int num_blocks() { return machine::num_blocks; }
inline char* shared_memory() {
  return machine::aligned(machine::now->block->shared.get());
}

inline void block_barrier() { machine::wait_at(machine::now->block->barrier, machine::num_threads); }

inline void grid_barrier() {
  if (!machine::cooperative) machine::fail("a barrier of the grid in a launch that is not cooperative");
  machine::wait_at(machine::grid, machine::num_blocks * machine::num_threads);
}

inline void arrive_and_wait(uint32_t* arrived, uint32_t expected) {
  if (!machine::cooperative) machine::fail("blocks wait for each other in a launch that is not cooperative");
  ++*arrived;
  machine::progress = true;
  while (*arrived < expected) machine::give_turn();
  machine::progress = true;
}

inline uint32_t ballot(bool predicate) {
  return machine::exchange(predicate, [](const auto& of) {
    uint32_t bits = 0;
    for (int lane = 0; lane < WARP; ++lane) bits |= uint32_t(of(lane)) << lane;
    return bits;
  });
}
inline float shuffle_xor(float value, int lanes) {
  return machine::exchange(value, [&](const auto& of) { return of((thread_index() % WARP) ^ lanes); });
}
inline uint32_t shuffle_up(uint32_t value, int lanes) {
  const int lane = thread_index() % WARP;
  return machine::exchange(value, [&](const auto& of) { return of(lane >= lanes ? lane - lanes : lane); });
}
inline uint32_t any_of(uint32_t value) {
  return machine::exchange(value, [](const auto& of) {
    uint32_t bits = 0;
    for (int lane = 0; lane < WARP; ++lane) bits |= of(lane);
    return bits;
  });
}

inline uint32_t atomic_add(uint32_t* address, uint32_t value) { return std::exchange(*address, *address + value); }
inline void atomic_or(uint32_t* address, uint32_t value) { *address |= value; }
inline void atomic_max(uint32_t* address, uint32_t value) { *address = std::max(*address, value); }
inline void atomic_max(uint64_t* address, uint64_t value) { *address = std::max(*address, value); }

inline int count_ones(uint32_t bits) { return std::popcount(bits); }
inline int leading_zeros(uint32_t bits) { return std::countl_zero(bits); }
inline void compute_again(int&) {}
inline uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }
inline float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }
inline float exp2_fast(float x) { return std::exp2(x); }
inline float log2_fast(float x) { return std::log2(x); }

// A copy lands when it is waited for, no sooner.
inline void copy_async(void* shared, const void* global, bool in_range) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    machine::fail("a copy that is not aligned");
  std::memset(shared, 0xCD, 16);
  machine::now->copies.push_back([=] {
    if (in_range)
      std::memcpy(shared, global, 16);
    else
      std::memset(shared, 0, 16);
  });
}
inline void copy_wait() {
  for (const auto& copy : machine::now->copies) copy();
  machine::now->copies.clear();
}

inline void load_matrices(uint32_t (&matrices)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) machine::fail("a matrix row that is not aligned");
  const int lane = thread_index() % WARP;
  struct Four { uint32_t of[4]; };
  const Four four = machine::exchange(row, [&](const auto& row_of) {
    Four result;
    for (int i = 0; i < 4; ++i)
      std::memcpy(&result.of[i], static_cast<const char*>(row_of(8 * i + lane / 4)) + 4 * (lane % 4), 4);
    return result;
  });
  std::copy_n(four.of, 4, matrices);
}

template <DType TYPE>
void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b_low, uint32_t b_high) {
  struct Operands { uint32_t a[4], b[2]; };
  const Operands own{{a[0], a[1], a[2], a[3]}, {b_low, b_high}};
  const int lane = thread_index() % WARP;
  const auto half = [](uint32_t pair, int which) {
    const auto bits = uint16_t(pair >> (16 * which));
    return TYPE == DType::bfloat16 ? bfloat16_to_float(bits) : float16_to_float(bits);
  };
  struct Four { float of[4]; };
  const Four added = machine::exchange(own, [&](const auto& of) {
    Four result{};
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      for (int k = 0; k < 16; ++k) {
        // Row r of a: lane 4 (r % 8) + k / 2 % 4, register r / 8 + 2 (k / 8). Row c of b: lane 4 c + k / 2 % 4, register k / 8.
        const float left = half(of(4 * (row % 8) + k / 2 % 4).a[row / 8 + 2 * (k / 8)], k % 2);
        const float right = half(of(4 * column + k / 2 % 4).b[k / 8], k % 2);
        result.of[i] += left * right;
      }
    }
    return result;
  });
  for (int i = 0; i < 4; ++i) sums[i] += added.of[i];
}

struct alignas(16) Word16 {
  uint64_t low, high;
};

using Stream = void*;

template <class Arguments>
const char* launch(void (*kernel)(Arguments), const Arguments& arguments, int blocks, int threads, int shared_bytes,
                   bool cooperative, Stream) {
  machine::body = [&] { kernel(arguments); };
  machine::run(blocks, threads, shared_bytes, cooperative);
  return nullptr;
}

struct Device {
  int multiprocessors;
  bool cooperative;
};

// Two multiprocessors: few blocks, which share out much work; and whatever a test says.
inline Device device{2, true};
inline Device current_device() { return device; }

}  // namespace adatp::cuda
