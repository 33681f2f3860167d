// What the CUDA kernels ask of the machine: who a thread is, barriers, collectives of a warp, asynchronous copies, matrix
// products, and on the host a launch. Nothing else in these kernels is written for a particular machine, so that a test
// can put another file of this name first on the include path and run them without a GPU.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "adatp/common.h"

#define ADATP_KERNEL(threads, blocks_per_multiprocessor) __global__ __launch_bounds__(threads, blocks_per_multiprocessor)
#define ADATP_DEVICE __device__ __forceinline__
#define ADATP_HOST_DEVICE __host__ __device__
#define ADATP_CONSTANT const __grid_constant__

namespace adatp::cuda {

constexpr int WARP = 32;

ADATP_DEVICE int thread_index() { return int(threadIdx.x); }
ADATP_DEVICE int block_index() { return int(blockIdx.x); }
ADATP_DEVICE int num_blocks() { return int(gridDim.x); }

// The block's shared memory, 16-byte aligned.
ADATP_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

// All threads of the block; they see each other's writes afterwards.
ADATP_DEVICE void block_barrier() { __syncthreads(); }

// All threads of the grid, in a cooperative launch; they see each other's writes afterwards.
ADATP_DEVICE void grid_barrier() { cooperative_groups::this_grid().sync(); }

// For one thread of a block: make its block's writes visible, count the block as arrived, wait until `expected` have.
ADATP_DEVICE void arrive_and_wait(uint32_t* arrived, uint32_t expected) {
  __threadfence();
  atomicAdd(arrived, 1u);
  uint32_t seen;
  do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(arrived) : "memory");
  while (seen < expected);
}

// Collectives of a whole warp.
ADATP_DEVICE uint32_t ballot(bool predicate) { return __ballot_sync(~0u, predicate); }
ADATP_DEVICE float shuffle_xor(float value, int lanes) { return __shfl_xor_sync(~0u, value, lanes); }
ADATP_DEVICE uint32_t shuffle_up(uint32_t value, int lanes) { return __shfl_up_sync(~0u, value, lanes); }
ADATP_DEVICE uint32_t any_of(uint32_t bits) { return __reduce_or_sync(~0u, bits); }

// In shared or in global memory.
ADATP_DEVICE uint32_t atomic_add(uint32_t* address, uint32_t value) { return atomicAdd(address, value); }
ADATP_DEVICE void atomic_or(uint32_t* address, uint32_t value) { atomicOr(address, value); }
ADATP_DEVICE void atomic_max(uint32_t* address, uint32_t value) { atomicMax(address, value); }
ADATP_DEVICE void atomic_max(uint64_t* address, uint64_t value) {
  atomicMax(reinterpret_cast<unsigned long long*>(address), static_cast<unsigned long long>(value));
}

ADATP_DEVICE int count_ones(uint32_t bits) { return __popc(bits); }
ADATP_DEVICE int leading_zeros(uint32_t bits) { return __clz(int(bits)); }
ADATP_DEVICE uint32_t bits_of(float value) { return __float_as_uint(value); }
ADATP_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

// What follows from the value is computed anew, instead of being held in registers over a loop.
ADATP_DEVICE void compute_again(int& value) { asm volatile("" : "+r"(value)); }

// 2^x and log2(x), each one instruction; at most 2 ulp, and 1 ulp plus 2^-22.6 near 1, off.
ADATP_DEVICE float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
ADATP_DEVICE float log2_fast(float x) {
  float result;
  asm("lg2.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// 16 bytes from global to shared memory, both aligned to as many, or zeros if `in_range` is false.
ADATP_DEVICE void copy_async(void* shared, const void* global, bool in_range) {
  const auto target = uint32_t(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(global), "r"(in_range ? 16 : 0) : "memory");
}
// Until all copies of this thread are there.
ADATP_DEVICE void copy_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Four matrices of 8 × 8 half-precision numbers; lane 8 i + r holds the address of row r of matrix i.
ADATP_DEVICE void load_matrices(uint32_t (&matrices)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}

// sums += a · bᵀ, with a of 16 × 16, b of 8 × 16, sums of 16 × 8. Lane l holds of the sums, with g = l / 4 and t = l % 4:
// (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
template <DType TYPE>
ADATP_DEVICE void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b_low, uint32_t b_high) {
  if constexpr (TYPE == DType::bfloat16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
}

// 16 bytes at once.
struct alignas(16) Word16 {
  uint64_t low, high;
};

using Stream = cudaStream_t;

// Null, or what is wrong.
template <class Arguments>
const char* launch(void (*kernel)(Arguments), const Arguments& arguments, int blocks, int threads, int shared_bytes,
                   bool cooperative, Stream stream) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = cooperative;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks)), config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(shared_bytes), config.stream = stream;
  config.attrs = &attribute, config.numAttrs = 1;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Of the current device.
struct Device {
  int multiprocessors;
  bool cooperative;  // whether all blocks of a launch can wait for each other
};

inline Device current_device() {
  int device = 0, multiprocessors = 0, cooperative = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device);
  return {multiprocessors, cooperative != 0};
}

}  // namespace adatp::cuda
