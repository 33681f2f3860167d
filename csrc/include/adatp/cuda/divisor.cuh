// Integer division by what the host knows: a GPU has no instruction for it, and the twenty that take its place would cost more
// than the products and copies between them.
#pragma once

#include <cstdint>

#include "adatp/cuda/device.cuh"

namespace adatp::cuda {

// A number and what dividing by it multiplies with: n / number = n · multiplier >> shift for every n from 0 to 2^31 − 1.
struct Divisor {
  int32_t number;
  uint32_t multiplier, shift;

  ADATP_DEVICE int quotient(int n) const { return int(uint64_t(uint32_t(n)) * multiplier >> shift); }
  // Given the quotient.
  ADATP_DEVICE int remainder(int n, int quotient) const { return n - quotient * number; }
  ADATP_DEVICE int remainder(int n) const { return remainder(n, quotient(n)); }
};

// On the host, for a number from 1 on. With 2^(s − 1) < number ≤ 2^s, the multiplier is 2^(31 + s) / number rounded up, below
// 2^32. It is too large by less than 1, so a quotient is by less than n / 2^(31 + s) < 1 / number, and its integer the same.
inline Divisor divide_by(int64_t number) {
  uint32_t bits = 0;
  while ((int64_t(1) << bits) < number) ++bits;
  const uint64_t power = uint64_t(1) << (31 + bits);
  return {int32_t(number), uint32_t((power + uint64_t(number) - 1) / uint64_t(number)), 31 + bits};
}

}  // namespace adatp::cuda
