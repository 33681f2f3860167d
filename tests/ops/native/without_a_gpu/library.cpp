// The CUDA library for a machine without a GPU: the same sources, with this folder's device.cuh first on the include path,
// as operators on CPU tensors.
#include <cstdint>

extern "C" int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

#define ADATP_DISPATCH_KEY CPU
#include "cuda/bindings.cu"

// The machine for the launches that follow: how its threads take turns, how large it is, what it can.
extern "C" __attribute__((visibility("default"))) void set_machine(uint64_t seed, int multiprocessors, bool cooperative) {
  adatp::cuda::machine::seed = seed;
  adatp::cuda::device = {multiprocessors, cooperative};
}

// n / number as the kernels divide, and the remainder.
extern "C" __attribute__((visibility("default"))) int32_t divide(int32_t n, int32_t number, int32_t* remainder) {
  const adatp::cuda::Divisor divisor = adatp::cuda::divide_by(number);
  *remainder = divisor.remainder(n);
  return divisor.quotient(n);
}
