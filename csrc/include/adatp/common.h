// What the kernels share: element types, their conversion to float32, and which instructions this CPU has.
//
// No framework: an inference engine in C++ includes these headers as they are. C++20, GCC or Clang.
#pragma once

#include <cstdint>
#include <cstring>

namespace adatp {

enum class DType { float32, bfloat16, float16 };

inline int64_t size_of(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

inline float bfloat16_to_float(uint16_t bits) {
  const uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline float float16_to_float(uint16_t bits) {
  // The exponent is re-biased by a product, which is exact and makes subnormal numbers right, too.
  const uint32_t magnitude = uint32_t(bits & 0x7FFF) << 13;
  float value;
  std::memcpy(&value, &magnitude, 4);
  value *= 0x1p112f;
  uint32_t wide;
  std::memcpy(&wide, &value, 4);
  if ((bits & 0x7C00) == 0x7C00) wide = magnitude | 0x7F800000;  // infinity and NaN
  wide |= uint32_t(bits & 0x8000) << 16;
  std::memcpy(&value, &wide, 4);
  return value;
}

inline float to_float(const void* data, int64_t index, DType dtype) {
  switch (dtype) {
    case DType::bfloat16: return bfloat16_to_float(static_cast<const uint16_t*>(data)[index]);
    case DType::float16: return float16_to_float(static_cast<const uint16_t*>(data)[index]);
    default: return static_cast<const float*>(data)[index];
  }
}

// How many tasks a thread should get at least, for tasks of so many multiplications or bytes: waking one takes microseconds.
inline int64_t grain_of(int64_t work) { return work < (1 << 18) ? (1 << 18) / (work + 1) + 1 : 1; }

// The sets of instructions that there are kernels for, each one more than the one before.
enum class Isa { portable, avx2, avx512, avx512_bf16 };

inline Isa best_isa() {
#if defined(__x86_64__)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return Isa::avx512_bf16;
  if (avx512) return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::portable;
}

}  // namespace adatp

// Functions between these two are compiled for the features named, whatever the rest of the file is compiled for.
#define ADATP_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define ADATP_WIDE_VECTORS
#define ADATP_BEGIN_TARGET(features) \
  ADATP_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define ADATP_END_TARGET ADATP_PRAGMA(clang attribute pop)
#else
#define ADATP_WIDE_VECTORS ",prefer-vector-width=512"
#define ADATP_BEGIN_TARGET(features) ADATP_PRAGMA(GCC push_options) ADATP_PRAGMA(GCC target(features))
#define ADATP_END_TARGET ADATP_PRAGMA(GCC pop_options)
#endif
