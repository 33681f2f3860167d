// What the operations work on: pointers, sizes, strides.
#pragma once

#include <cstdint>

#include "adatp/common.h"

namespace adatp {

// What attends to what. Strides in elements; null masks are all true.
struct Attention {
  const void* query;  // [B, Hq, T, D]
  const void* key;    // [B, Hkv, N, D]
  DType dtype;
  int64_t batch, query_heads, kv_heads, rows, keys, dim;
  int64_t query_strides[4], key_strides[4];
  int64_t query_start;  // row i sees keys ≤ query_start + i
  float scale;
  const uint8_t* key_mask;  // [B, N], 0 hides
  int64_t key_mask_strides[2];
  const uint8_t* query_mask;  // [B, T], 0 for a row that does not count
  int64_t query_mask_strides[2];

  int64_t group() const { return query_heads / kv_heads; }
  int64_t packed_rows() const { return group() * rows; }
};

enum class Dedup { strict, soft, off };

// Tokens to take, [batch, count] with strides in elements.
struct Tokens {
  const int64_t* data;
  int64_t batch, count;
  int64_t strides[2];
};

// A tensor and where its tokens go. Sizes and strides, in elements, have `dims` entries. With a batch of one all
// batch-like dimensions take the same tokens; otherwise `batch_dim` takes its own, or is broadcast from size 1.
struct Transfer {
  const void* source;
  void* target;
  int64_t element_size, dims;
  const int64_t *source_sizes, *source_strides, *target_sizes, *target_strides;
  int64_t batch_dim, token_dim;
};

}  // namespace adatp
