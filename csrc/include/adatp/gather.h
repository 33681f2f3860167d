// Moving the surviving tokens of any number of tensors together on a CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "adatp/arguments.h"
#include "adatp/common.h"

namespace adatp {

namespace detail {

// What a thread moves at a time: so many bytes, of as many tokens as that makes, within limits. Threads get equally
// many neighbouring chunks, so all chunks must be about as large, whatever the tensor.
constexpr int64_t CHUNK_BYTES = 1 << 15, MOST_TOKENS = 256;

// Tokens of one chunk.
inline int64_t chunk_of(const Transfer& t, const Tokens& tokens) {
  int64_t bytes = t.element_size;
  for (int64_t d = 0; d < t.dims; ++d)
    if (d != t.token_dim && !(tokens.batch > 1 && d == t.batch_dim)) bytes *= t.target_sizes[d];
  return std::clamp<int64_t>(CHUNK_BYTES / bytes, 1, MOST_TOKENS);
}

template <int64_t Bytes>
void copy_pieces(const char* source, char* target, const int64_t* tokens, int64_t count, int64_t source_token,
                 int64_t target_token) {
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(target + i * target_token, source + tokens[i] * source_token, Bytes);
}

inline void copy_pieces(const char* source, char* target, const int64_t* tokens, int64_t count, int64_t source_token,
                        int64_t target_token, int64_t piece) {
  switch (piece) {
    case 1: return copy_pieces<1>(source, target, tokens, count, source_token, target_token);
    case 2: return copy_pieces<2>(source, target, tokens, count, source_token, target_token);
    case 4: return copy_pieces<4>(source, target, tokens, count, source_token, target_token);
    case 8: return copy_pieces<8>(source, target, tokens, count, source_token, target_token);
    default:
      for (int64_t i = 0; i < count; ++i)
        std::memcpy(target + i * target_token, source + tokens[i] * source_token, piece);
  }
}

// `count` tokens of one batch row, at most MOST_TOKENS, for every element of the dimensions before and behind them.
inline void move_chunk(const Transfer& t, const Tokens& tokens, int64_t batch, int64_t first, int64_t count) {
  int64_t chosen[MOST_TOKENS];
  for (int64_t i = 0; i < count; ++i)
    chosen[i] = tokens.data[batch * tokens.strides[0] + (first + i) * tokens.strides[1]];
  const char* source = static_cast<const char*>(t.source);
  char* target = static_cast<char*>(t.target) + first * t.target_strides[t.token_dim] * t.element_size;
  const bool own_batch = tokens.batch > 1;
  if (own_batch) {
    if (t.source_sizes[t.batch_dim] > 1) source += batch * t.source_strides[t.batch_dim] * t.element_size;
    target += batch * t.target_strides[t.batch_dim] * t.element_size;
  }
  // What lies together at the end in both tensors is one piece; the other dimensions are walked.
  int64_t piece = t.element_size;
  struct Walk { int64_t size, source, target, at; };
  std::vector<Walk> walks;
  for (int64_t d = t.dims - 1; d >= 0; --d) {
    const int64_t size = t.target_sizes[d];
    if (d == t.token_dim || (own_batch && d == t.batch_dim) || size == 1) continue;
    const int64_t from = t.source_strides[d] * t.element_size, to = t.target_strides[d] * t.element_size;
    if (walks.empty() && from == piece && to == piece)
      piece *= size;
    else
      walks.push_back({size, from, to, 0});
  }
  const int64_t source_token = t.source_strides[t.token_dim] * t.element_size;
  const int64_t target_token = t.target_strides[t.token_dim] * t.element_size;
  for (;;) {
    copy_pieces(source, target, chosen, count, source_token, target_token, piece);
    size_t d = 0;
    for (; d < walks.size(); ++d) {
      Walk& walk = walks[d];
      source += walk.source;
      target += walk.target;
      if (++walk.at < walk.size) break;
      source -= walk.size * walk.source;
      target -= walk.size * walk.target;
      walk.at = 0;
    }
    if (d == walks.size()) return;
  }
}

}  // namespace detail

// Every transfer, of tensors that are not empty. `parallel` is as in column_sums.h.
template <class Parallel>
void gather(const Tokens& tokens, const std::vector<Transfer>& transfers, const Parallel& parallel) {
  // Of every transfer, the number of its first chunk; they count batch row by batch row.
  std::vector<int64_t> firsts;
  int64_t tasks = 0;
  for (const Transfer& t : transfers) {
    const int64_t chunk = detail::chunk_of(t, tokens);
    firsts.push_back(tasks);
    tasks += tokens.batch * ((tokens.count + chunk - 1) / chunk);
  }
  parallel(tasks, grain_of(detail::CHUNK_BYTES), [&](int64_t task) {
    const int64_t number = std::upper_bound(firsts.begin(), firsts.end(), task) - firsts.begin() - 1;
    const Transfer& t = transfers[number];
    const int64_t chunk = detail::chunk_of(t, tokens), chunks = (tokens.count + chunk - 1) / chunk;
    const int64_t own = task - firsts[number], first = own % chunks * chunk;
    detail::move_chunk(t, tokens, own / chunks, first, std::min(chunk, tokens.count - first));
  });
}

}  // namespace adatp
