// The CUDA stage as PyTorch operators, on its stable ABI. Arguments come checked; nothing is decided here.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

#include "adatp/cuda/launch.cuh"

#ifndef ADATP_DISPATCH_KEY
#define ADATP_DISPATCH_KEY CUDA
#endif

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace bindings {

template <size_t Count>
void strides_of(const Tensor& tensor, int64_t (&strides)[Count]) {
  for (size_t d = 0; d < Count; ++d) strides[d] = tensor.stride(d);
}

template <class T, size_t Count>
const T* data_of(const Tensor& tensor, int64_t (&strides)[Count]) {
  strides_of(tensor, strides);
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T, size_t Count>
const T* data_of(const std::optional<Tensor>& tensor, int64_t (&strides)[Count]) {
  return tensor ? data_of<T>(*tensor, strides) : nullptr;
}

adatp::cuda::Scoring scoring_of(const Tensor& query, const Tensor& key, const std::optional<Tensor>& lse,
                                const std::optional<Tensor>& key_mask, const std::optional<Tensor>& query_mask,
                                int64_t query_start, double scale) {
  adatp::cuda::Scoring scoring{};
  adatp::Attention& a = scoring.attention;
  a.query = data_of<void>(query, a.query_strides);
  a.key = data_of<void>(key, a.key_strides);
  a.dtype = query.scalar_type() == ScalarType::BFloat16 ? adatp::DType::bfloat16 : adatp::DType::float16;
  a.batch = query.size(0), a.query_heads = query.size(1), a.rows = query.size(2), a.dim = query.size(3);
  a.kv_heads = key.size(1), a.keys = key.size(2);
  a.query_start = query_start;
  a.scale = float(scale);
  a.key_mask = data_of<uint8_t>(key_mask, a.key_mask_strides);
  a.query_mask = data_of<uint8_t>(query_mask, a.query_mask_strides);
  scoring.lse = data_of<float>(lse, scoring.lse_strides);
  return scoring;
}

adatp::cuda::Selecting selecting_of(const std::optional<Tensor>& scores, const Tensor& segments, const Tensor& positions,
                                    const Tensor& budgets, const std::optional<Tensor>& prior, int64_t num_positions,
                                    int64_t dedup, double soft_weight) {
  adatp::cuda::Selecting selecting{};
  selecting.scores = data_of<float>(scores, selecting.score_strides);
  selecting.prior = data_of<float>(prior, selecting.prior_strides);
  selecting.segments = data_of<int64_t>(segments, selecting.segment_strides);
  selecting.positions = data_of<int64_t>(positions, selecting.position_strides);
  selecting.budgets = data_of<int64_t>(budgets, selecting.budget_strides);
  selecting.batch = int32_t(segments.size(0)), selecting.columns = int32_t(segments.size(1));
  selecting.num_segments = int32_t(budgets.size(1)), selecting.num_positions = int32_t(num_positions);
  selecting.dedup = adatp::Dedup(dedup), selecting.soft_weight = float(soft_weight);
  return selecting;
}

void run(adatp::cuda::Stage& stage, const std::vector<adatp::cuda::Move>& moves, const Tensor& on_device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on_device.get_device_index(), &stream));
  const bool fused = adatp::cuda::current_device().cooperative;
  const int64_t bytes = adatp::cuda::place(stage, nullptr, fused);
  const Tensor workspace = torch::stable::new_empty(on_device, {bytes}, ScalarType::Byte);
  adatp::cuda::place(stage, workspace.mutable_data_ptr(), fused);
  const char* error = adatp::cuda::run_stage(stage, moves, fused, static_cast<adatp::cuda::Stream>(stream));
  STD_TORCH_CHECK(!error, "the CUDA kernel could not be launched: ", error);
}

void column_sums(Tensor query, Tensor key, std::optional<Tensor> lse, std::optional<Tensor> key_mask,
                 std::optional<Tensor> query_mask, Tensor scores, int64_t query_start, int64_t first_key, double scale) {
  adatp::cuda::Stage stage{};
  stage.scoring = scoring_of(query, key, lse, key_mask, query_mask, query_start, scale);
  stage.scoring.first = int32_t(first_key);
  stage.scoring.columns = stage.selecting.columns = int32_t(scores.size(1));
  stage.selecting.batch = int32_t(scores.size(0));
  stage.scores = static_cast<float*>(scores.mutable_data_ptr());
  run(stage, {}, scores);
}

// A stage, or a selection if scores are given. `kept` [B, tokens] is the list of survivors of a sequence that has `first`
// tokens before the columns.
void stage(std::optional<Tensor> query, std::optional<Tensor> key, std::optional<Tensor> lse, std::optional<Tensor> key_mask,
           std::optional<Tensor> query_mask, std::optional<Tensor> scores, Tensor segments, Tensor positions, Tensor budgets,
           std::optional<Tensor> prior, Tensor kept, std::vector<Tensor> sources, std::vector<Tensor> targets,
           std::vector<int64_t> batch_dims, std::vector<int64_t> token_dims, std::vector<int64_t> element_sizes,
           int64_t query_start, int64_t first_key, double scale, int64_t first, int64_t num_selected, int64_t num_positions,
           int64_t dedup, double soft_weight) {
  adatp::cuda::Stage stage{};
  if (!scores) stage.scoring = scoring_of(*query, *key, lse, key_mask, query_mask, query_start, scale);
  stage.selecting = selecting_of(scores, segments, positions, budgets, prior, num_positions, dedup, soft_weight);
  stage.scoring.first = int32_t(first_key), stage.scoring.columns = stage.selecting.columns;
  stage.compacting.kept = static_cast<int64_t*>(kept.mutable_data_ptr());
  stage.compacting.first = int32_t(first), stage.compacting.num_selected = int32_t(num_selected);
  stage.compacting.tokens = int32_t(kept.size(1));
  std::vector<adatp::cuda::Move> moves;
  for (size_t i = 0; i < sources.size(); ++i) {
    const Tensor &source = sources[i], &target = targets[i];
    moves.push_back(adatp::cuda::move_of({source.const_data_ptr(), target.mutable_data_ptr(), element_sizes[i], source.dim(),
                                          source.sizes().data(), source.strides().data(), target.sizes().data(),
                                          target.strides().data(), batch_dims[i], token_dims[i]},
                                         kept.size(0), kept.size(1)));
  }
  run(stage, moves, segments);
}

}  // namespace bindings

STABLE_TORCH_LIBRARY(adatp_cuda, m) {
  m.def(
      "column_sums(Tensor query, Tensor key, Tensor? lse, Tensor? key_mask, Tensor? query_mask, Tensor(a!) scores, "
      "int query_start, int first_key, float scale) -> ()");
  m.def(
      "stage(Tensor? query, Tensor? key, Tensor? lse, Tensor? key_mask, Tensor? query_mask, Tensor? scores, Tensor segments, "
      "Tensor positions, Tensor budgets, Tensor? prior, Tensor(a!) kept, Tensor[] sources, Tensor(b!)[] targets, "
      "int[] batch_dims, int[] token_dims, int[] element_sizes, int query_start, int first_key, float scale, int first, "
      "int num_selected, int num_positions, int dedup, float soft_weight) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(adatp_cuda, ADATP_DISPATCH_KEY, m) {
  m.impl("column_sums", TORCH_BOX(&bindings::column_sums));
  m.impl("stage", TORCH_BOX(&bindings::stage));
}
