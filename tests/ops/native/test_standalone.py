"""The kernels' headers need no framework: a C++ program without PyTorch includes them, and checks itself."""

import subprocess

from compiler import compiler_or_skip

from adatp_kernels.ops.native import recipe

PROGRAM = r"""
#include <cstdio>
#include "adatp/column_sums.h"
#include "adatp/gather.h"
#include "adatp/select.h"

int main() {
  const auto serial = [](int64_t count, int64_t, const auto& task) { for (int64_t i = 0; i < count; ++i) task(i); };
  // Two query heads, one row, four keys; keys 0 and 2 score ln 2 more than the others: probabilities 2 : 1 : 2 : 1.
  const float ln2 = 0.6931472f, query[2] = {1, 1}, key[4] = {ln2, 0, ln2, 0};
  adatp::Attention a{query, key, adatp::DType::float32, 1, 2, 1, 1, 4, 1, {2, 1, 1, 1}, {4, 4, 1, 1}, 3, 1.0f, nullptr, {}, nullptr, {}};
  float lse[2], scores[4];
  adatp::row_lse(a, lse, serial);
  adatp::column_sums(a, nullptr, {}, 0, 4, scores, serial);
  const int64_t segments[4] = {0, 0, 0, -1}, positions[4] = {0, 1, 0, 0}, budget[1] = {1};
  adatp::Row<float> row{scores, 1, segments, 1, positions, 1, budget, 1, nullptr, 1, 4, 1, 2, adatp::Dedup::strict, 0};
  int64_t kept[2];
  adatp::select_row(row, kept, 2);
  float moved[2];
  const int64_t sizes[2] = {1, 4}, strides[2] = {4, 1}, moved_sizes[2] = {1, 2}, moved_strides[2] = {2, 1};
  adatp::gather({kept, 1, 2, {2, 1}}, {{key, moved, 4, 2, sizes, strides, moved_sizes, moved_strides, 0, 1}}, serial);
  std::printf("%.4f %.4f %.4f ", lse[0], scores[0], scores[1]);
  std::printf("%lld %lld %.4f %.4f\n", (long long)kept[0], (long long)kept[1], moved[0], moved[1]);
}
"""


def test_a_program_without_a_framework(tmp_path):
    cxx = compiler_or_skip()
    source, program = tmp_path / "main.cpp", tmp_path / "main"
    source.write_text(PROGRAM)
    options = ["-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{recipe.source_folder() / 'include'}"]
    subprocess.run([cxx, *options, str(source), "-o", str(program)], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    assert printed == ["1.7918", "0.3333", "0.1667", "0", "3", "0.6931", "0.0000"]  # ln 6, 2/6, 1/6
