// The CPU kernels as PyTorch operators, on its stable ABI. Arguments come checked, results get their memory here.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <vector>

#include "adatp/column_sums.h"
#include "adatp/gather.h"
#include "adatp/select.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace bindings {

// Torch's own threads.
const auto parallel = [](int64_t count, int64_t grain, const auto& task) {
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(i);
  });
};

template <size_t Count>
void strides_of(const Tensor& tensor, int64_t (&strides)[Count]) {
  for (size_t d = 0; d < Count; ++d) strides[d] = tensor.stride(d);
}

const uint8_t* mask_of(const std::optional<Tensor>& mask, int64_t (&strides)[2]) {
  if (!mask) return nullptr;
  strides_of(*mask, strides);
  return static_cast<const uint8_t*>(mask->const_data_ptr());
}

int32_t dtype_of(const Tensor& tensor) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

// A dense tensor; its values are whatever the memory holds.
Tensor empty(const std::vector<int64_t>& sizes, int32_t dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size() - 1; d > 0; --d) strides[d - 1] = strides[d] * std::max<int64_t>(sizes[d], 1);
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(sizes.size()), sizes.data(), strides.data(), dtype, aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

adatp::Attention attention_of(const Tensor& query, const Tensor& key, int64_t query_start, double scale,
                              const std::optional<Tensor>& key_mask, const std::optional<Tensor>& query_mask) {
  adatp::Attention a{};
  a.query = query.const_data_ptr();
  a.key = key.const_data_ptr();
  a.dtype = query.scalar_type() == ScalarType::Float      ? adatp::DType::float32
            : query.scalar_type() == ScalarType::BFloat16 ? adatp::DType::bfloat16
                                                          : adatp::DType::float16;
  a.batch = query.size(0), a.query_heads = query.size(1), a.rows = query.size(2), a.dim = query.size(3);
  a.kv_heads = key.size(1), a.keys = key.size(2);
  strides_of(query, a.query_strides);
  strides_of(key, a.key_strides);
  a.query_start = query_start;
  a.scale = float(scale);
  a.key_mask = mask_of(key_mask, a.key_mask_strides);
  a.query_mask = mask_of(query_mask, a.query_mask_strides);
  return a;
}

void row_lse(const Tensor& query, const Tensor& key, std::optional<Tensor> key_mask, Tensor lse, int64_t query_start,
             double scale, int64_t isa) {
  adatp::row_lse(attention_of(query, key, query_start, scale, key_mask, std::nullopt),
                 static_cast<float*>(lse.mutable_data_ptr()), parallel, adatp::Isa(isa));
}

void column_sums_out(const Tensor& query, const Tensor& key, std::optional<Tensor> lse, std::optional<Tensor> key_mask,
                     std::optional<Tensor> query_mask, Tensor scores, int64_t query_start, int64_t first, double scale,
                     int64_t isa) {
  int64_t lse_strides[3] = {};
  if (lse) strides_of(*lse, lse_strides);
  adatp::column_sums(attention_of(query, key, query_start, scale, key_mask, query_mask),
                     lse ? static_cast<const float*>(lse->const_data_ptr()) : nullptr, lse_strides, first,
                     first + scores.size(1), static_cast<float*>(scores.mutable_data_ptr()), parallel, adatp::Isa(isa));
}

Tensor column_sums(const Tensor& query, const Tensor& key, std::optional<Tensor> lse, std::optional<Tensor> key_mask,
                   std::optional<Tensor> query_mask, int64_t query_start, int64_t first, int64_t last, double scale,
                   int64_t isa) {
  const Tensor scores = empty({key.size(0), last - first}, aoti_torch_dtype_float32());
  column_sums_out(query, key, lse, key_mask, query_mask, scores, query_start, first, scale, isa);
  return scores;
}

template <class Score>
void select_rows(const Tensor& scores, const Tensor& segments, const Tensor& positions, const Tensor& budgets,
                 const std::optional<Tensor>& prior, const Tensor& kept, int64_t first, int64_t num_selected,
                 int64_t num_positions, int64_t dedup, double soft_weight, int64_t isa) {
  parallel(scores.size(0), adatp::grain_of(16 * scores.size(1)), [&](int64_t b) {
    const auto data = [b](const Tensor& tensor, auto type) {
      return static_cast<const decltype(type)*>(tensor.const_data_ptr()) + b * tensor.stride(0);
    };
    adatp::Row<Score> row{};
    row.scores = data(scores, Score{}), row.score_stride = scores.stride(1);
    row.segments = data(segments, int64_t{}), row.segment_stride = segments.stride(1);
    row.positions = data(positions, int64_t{}), row.position_stride = positions.stride(1);
    row.budgets = data(budgets, int64_t{}), row.budget_stride = budgets.stride(1);
    if (prior) row.prior = data(*prior, Score{}), row.prior_stride = prior->stride(1);
    row.columns = scores.size(1), row.num_segments = budgets.size(1);
    row.num_positions = num_positions;
    row.dedup = adatp::Dedup(dedup), row.soft_weight = Score(soft_weight);
    // Before the columns and behind them is text, which stays.
    int64_t* const tokens = static_cast<int64_t*>(kept.mutable_data_ptr()) + b * kept.size(1);
    int64_t* const chosen = tokens + first;
    adatp::select_row(row, chosen, num_selected, adatp::Isa(isa));
    std::iota(tokens, chosen, 0);
    for (int64_t i = 0; i < num_selected; ++i) chosen[i] += first;
    std::iota(chosen + num_selected, tokens + kept.size(1), first + scores.size(1));
  });
}

// The surviving tokens of a sequence of `length`, whose columns begin at token `first`.
Tensor select(const Tensor& scores, const Tensor& segments, const Tensor& positions, const Tensor& budgets,
              std::optional<Tensor> prior, int64_t first, int64_t length, int64_t num_selected, int64_t num_positions,
              int64_t dedup, double soft_weight, int64_t isa) {
  const Tensor kept = empty({scores.size(0), length - scores.size(1) + num_selected}, dtype_of(segments));
  const auto rows = scores.scalar_type() == ScalarType::Double ? select_rows<double> : select_rows<float>;
  rows(scores, segments, positions, budgets, prior, kept, first, num_selected, num_positions, dedup, soft_weight, isa);
  return kept;
}

// Makes its results itself: from Python that takes longer than moving a short video's tokens.
std::vector<Tensor> gather(const Tensor& indices, std::vector<Tensor> sources, std::vector<int64_t> batch_dims,
                           std::vector<int64_t> token_dims) {
  const int64_t batch = indices.size(0), kept = indices.size(1);
  adatp::Tokens tokens{static_cast<const int64_t*>(indices.const_data_ptr()), batch, kept, {}};
  strides_of(indices, tokens.strides);
  std::vector<Tensor> targets;
  targets.reserve(sources.size());
  std::vector<adatp::Transfer> transfers;
  for (size_t i = 0; i < sources.size(); ++i) {
    const Tensor& source = sources[i];
    std::vector<int64_t> sizes(source.sizes().begin(), source.sizes().end());
    if (batch != 1) sizes[batch_dims[i]] = batch;  // a single row's tokens are taken of every row
    sizes[token_dims[i]] = kept;
    const Tensor& target = targets.emplace_back(empty(sizes, dtype_of(source)));
    if (target.numel() == 0) continue;
    transfers.push_back({source.const_data_ptr(), target.mutable_data_ptr(), int64_t(source.element_size()), source.dim(),
                         source.sizes().data(), source.strides().data(), target.sizes().data(), target.strides().data(),
                         batch_dims[i], token_dims[i]});
  }
  if (!transfers.empty()) adatp::gather(tokens, transfers, parallel);
  return targets;
}

int64_t best_isa() { return int64_t(adatp::best_isa()); }

}  // namespace bindings

STABLE_TORCH_LIBRARY(adatp_cpu, m) {
  m.def("best_isa() -> int");
  m.def("row_lse(Tensor query, Tensor key, Tensor? key_mask, Tensor(a!) lse, int query_start, float scale, int isa) -> ()");
  m.def(
      "column_sums.out(Tensor query, Tensor key, Tensor? lse, Tensor? key_mask, Tensor? query_mask, Tensor(a!) scores, "
      "int query_start, int first, float scale, int isa) -> ()");
  m.def(
      "column_sums(Tensor query, Tensor key, Tensor? lse, Tensor? key_mask, Tensor? query_mask, int query_start, "
      "int first, int last, float scale, int isa) -> Tensor");
  m.def(
      "select(Tensor scores, Tensor segments, Tensor positions, Tensor budgets, Tensor? prior, int first, int length, "
      "int num_selected, int num_positions, int dedup, float soft_weight, int isa) -> Tensor");
  m.def("gather(Tensor indices, Tensor[] sources, int[] batch_dims, int[] token_dims) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(adatp_cpu, CPU, m) {
  m.impl("row_lse", TORCH_BOX(&bindings::row_lse));
  m.impl("column_sums.out", TORCH_BOX(&bindings::column_sums_out));
  m.impl("column_sums", TORCH_BOX(&bindings::column_sums));
  m.impl("select", TORCH_BOX(&bindings::select));
  m.impl("gather", TORCH_BOX(&bindings::gather));
}

STABLE_TORCH_LIBRARY_IMPL(adatp_cpu, CompositeExplicitAutograd, m) { m.impl("best_isa", TORCH_BOX(&bindings::best_isa)); }
