// The row ops of a GPU, one small problem for every instance of every kernel, against the CPU:
// outputs start as NaN patterns and lie between guard bands. Meant for compute-sanitizer, too; the
// NumPy tests under tests/runtime go further. Without a GPU nothing is tested.
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "ft/core/buffer.h"
#include "ft/kernels/activation.h"
#include "ft/kernels/embedding.h"
#include "ft/kernels/norm.h"
#include "ft/kernels/residual.h"
#include "ft/kernels/rope.h"
#include "tests/cpp/check.h"
#include "tests/cpp/gpu_arrays.h"

namespace flexq_ft {

namespace {

constexpr DataType kTypes[] = {DataType::kFp16, DataType::kBf16, DataType::kFp32};

// Groups of a row of k: none, one, those that lie in neighbouring lanes, and one of an odd size.
std::vector<int64_t> groupings(int64_t k) { return {0, k, 128, 24, 5}; }

// Rows in one register vector a thread, in two, in shared memory, and one that is not aligned.
constexpr int64_t kRows[] = {40, 4104, 14344, 577};

}  // namespace

TEST(residual_norm) {
  if (without_gpu()) return;
  constexpr int64_t kTokens = 2;
  for (const DataType dtype : kTypes) {
    for (const bool int32 : {false, true}) {
      for (const int64_t hidden : kRows) {
        for (const int64_t group : groupings(hidden)) {
          const bool layer = group == 128 || group == hidden;
          Both residual(dtype, Shape{kTokens, hidden});
          Both weight(dtype, Shape{hidden}), bias(dtype, Shape{hidden});
          residual.random(), weight.random(), bias.random();
          Operand y(int32, kTokens, hidden);
          Input out(dtype, kTokens, hidden, group, 6);
          const NormType type = layer ? NormType::kLayer : NormType::kRms;
          invokeResidualNorm(out.gpu, residual.gpu(), y.gpu,
                             {type, weight.gpu(), bias.gpu(), 1e-5f}, stream());
          const NormArgs norm{type, weight.host(), bias.host(), 1e-5f};
          invokeResidualNorm(out.host, residual.host(), y.host, norm, {});
          residual.expect_equal();
          out.values.expect_close();
          out.expect_codes();
        }
      }
    }
  }
}

TEST(norm_without_a_product_leaves_the_residual_and_may_emit_codes_only) {
  if (without_gpu()) return;
  for (const DataType dtype : kTypes) {
    const int64_t hidden = 640;
    Both residual(dtype, Shape{3, hidden}), weight(dtype, Shape{hidden});
    residual.random(), weight.random();
    Input out(dtype, 3, hidden, hidden, 8), again(dtype, 3, hidden, hidden, 8);
    const NormArgs norm{NormType::kRms, weight.gpu(), {}, 1e-6f};
    invokeResidualNorm(out.gpu, residual.gpu(), {}, norm, stream());
    again.gpu.values = {};
    invokeResidualNorm(again.gpu, residual.gpu(), {}, norm, stream());
    residual.expect_equal();
    out.expect_codes();
    EXPECT(out.codes.fetch() == again.codes.fetch());
    EXPECT(out.scales.fetch() == again.scales.fetch());
    for (const uint8_t byte : again.values.fetch()) EXPECT_EQ(int{byte}, kPoison);
  }
}

TEST(add_residual) {
  if (without_gpu()) return;
  for (const DataType dtype : kTypes) {
    for (const bool int32 : {false, true}) {
      for (const int64_t hidden : {1, 40, 1033}) {
        Both x(dtype, Shape{3, hidden}, size_of(dtype));
        x.random();
        Operand y(int32, 3, hidden);
        invokeAddResidual(x.gpu(), y.gpu, stream());
        invokeAddResidual(x.host(), y.host, {});
        x.expect_equal();
      }
    }
  }
}

TEST(activation) {
  if (without_gpu()) return;
  for (const DataType dtype : kTypes) {
    for (const bool int32 : {false, true}) {
      for (const int64_t inter : kRows) {
        for (const int64_t group : groupings(inter)) {
          const bool gated = group != 24;
          const Activation name = group == 0     ? Activation::kSilu
                                  : group == 128 ? Activation::kGelu
                                  : group == 24  ? Activation::kRelu
                                                 : Activation::kSilu;
          Operand x(int32, 2, gated ? 2 * inter : inter);
          Input out(dtype, 2, inter, group, 8);
          if (!gated) {
            invokeActivation(out.host, x.host, name, {});
            invokeActivation(out.gpu, x.gpu, name, stream());
            out.values.expect_close();
            out.expect_codes();
            continue;
          }
          invokeGatedActivation(out.host, x.host, {}, name, {});
          invokeGatedActivation(out.gpu, x.gpu, {}, name, stream());
          out.values.expect_close();
          out.expect_codes();
          if (inter % kBandRows != 0) continue;
          const std::vector<uint8_t> made = out.values.fetch();
          Input again(dtype, 2, inter, group, 8);
          x.arrange({inter});
          invokeGatedActivation(again.gpu, x.gpu, {inter}, name, stream());
          EXPECT(again.values.fetch() == made);
          again.expect_codes();
        }
      }
    }
  }
}

// The same codes and scales as token by token, in the places where W6Ax products look for them.
TEST(codes_by_group_in_fragment_order) {
  if (without_gpu()) return;
  std::vector<std::pair<int64_t, int64_t>> problems = {{1100, 4104}};  // the rows of a prompt
  for (const int64_t k : kRows) problems.push_back({3, k});
  for (const DataType dtype : kTypes) {
    for (const auto& [tokens, k] : problems) {
      Input out(dtype, tokens, k, 128, 6);
      ByGroup by_group(tokens, Input::groups(k, 128));
      by_group.describe(out.gpu);
      const auto check = [&] {
        const std::vector<uint8_t> made = out.values.fetch();
        std::memcpy(out.host.values.raw(), made.data(), made.size());
        quantize_values(out.host, {});
        by_group.expect_equal(out.host.codes.data<int8_t>(), out.host.scales.data<float>());
      };
      out.values.random();
      quantize_values(out.gpu, stream());
      check();

      Both residual(dtype, Shape{tokens, k}), weight(dtype, Shape{k});
      residual.random(), weight.random();
      invokeResidualNorm(out.gpu, residual.gpu(), {}, {NormType::kRms, weight.gpu(), {}, 1e-5f},
                         stream());
      check();

      Operand x(false, tokens, 2 * k);
      const RowOrder order{k % kBandRows == 0 ? k : 0};
      x.arrange(order);
      invokeGatedActivation(out.gpu, x.gpu, order, Activation::kSilu, stream());
      check();
    }
  }
}

TEST(quantize_activations) {
  if (without_gpu()) return;
  for (const DataType dtype : kTypes) {
    for (const int64_t k : kRows) {
      for (const int64_t group : {k, int64_t{8}, int64_t{128}, int64_t{256}, int64_t{7}}) {
        Input x(dtype, 4, k, group, 8);
        x.values.random();
        dispatch_float(dtype, [&](auto tag) {
          using T = decltype(tag);
          T* rows = static_cast<T*>(x.host.values.raw());
          for (int64_t i = 0; i < k; ++i) rows[k + i] = from_float<T>(0.0f);
          rows[2 * k] = from_float<T>(INFINITY);
          rows[4 * k - 1] = from_float<T>(NAN);
        });
        x.values.upload();
        quantize_values(x.gpu, stream());
        quantize_values(x.host, {});
        x.codes.expect_equal();
        x.scales.expect_equal();
      }
    }
  }
}

TEST(finish_product_has_the_bits_of_the_cpu) {
  if (without_gpu()) return;
  for (const bool int32 : {false, true}) {
    for (const int64_t n : {1, 7, 1032}) {
      for (const size_t shift : {0, 4}) {
        Operand y(int32, 3, n);
        Both out(DataType::kFp32, Shape{3, n}, shift);
        invokeFinishProduct(out.gpu(), y.gpu, stream());
        std::memcpy(out.host().raw(), y.finished.host().raw(), out.host().bytes());
        out.expect_equal();
      }
    }
  }
}

TEST(embedding_outside_the_table_is_a_row_of_zeros) {
  if (without_gpu()) return;
  for (const DataType dtype : kTypes) {
    for (const int64_t hidden : {1, 40, 1033}) {
      for (const bool learned : {false, true}) {
        Both table(dtype, Shape{5, hidden}), places(dtype, Shape{3, hidden});
        Both ids(DataType::kInt32, Shape{4}), positions(DataType::kInt32, Shape{4});
        Both out(dtype, Shape{4, hidden});
        table.random(), places.random();
        ids.values({4, -1, 5, 0}), positions.values({2, 0, 0, learned ? 3 : 1});
        invokeEmbedding(out.gpu(), ids.gpu(), table.gpu(), positions.gpu(),
                        learned ? ConstTensor(places.gpu()) : ConstTensor(), stream());
        ids.values({4, 0, 0, 0}), positions.values({2, 0, 0, 1});
        invokeEmbedding(out.host(), ids.host(), table.host(), positions.host(),
                        learned ? ConstTensor(places.host()) : ConstTensor(), {});
        const auto zero = [&](int64_t row) {
          std::memset(out.host().rows(row, row + 1).raw(), 0, out.host().bytes() / 4);
        };
        zero(1), zero(2);
        if (learned) zero(3);
        out.expect_equal();
      }
    }
  }
}

namespace {

// Two decodes, an empty sequence and one of 19 tokens, on pages in no order.
struct Ragged {
  Both ids{DataType::kInt32, Shape{21}};
  Both positions{DataType::kInt32, Shape{21}};
  Both offsets{DataType::kInt32, Shape{5}};
  Both context{DataType::kInt32, Shape{4}};
  Both pages{DataType::kInt32, Shape{4, 3}};

  Ragged() {
    std::vector<int32_t> at = {17, 0};
    for (int32_t p = 5; p < 24; ++p) at.push_back(p);
    ids.values(at), positions.values(at);
    offsets.values({0, 1, 2, 2, 21});
    context.values({17, 0, 3, 5});
    pages.values({4, 1, -1, 0, -1, -1, 5, -1, -1, 3, 2, -1});
  }

  RaggedBatch batch(bool gpu) {
    const auto side = [&](Both& both) { return ConstTensor(gpu ? both.gpu() : both.host()); };
    return {side(ids), side(positions), side(offsets), side(context), side(pages), 2, 19};
  }
};

}  // namespace

TEST(rope_append_has_the_bits_of_the_cpu) {
  if (without_gpu()) return;
  Ragged ragged;
  Both table_of_48(DataType::kFp32, Shape{32, 48}), table_of_14(DataType::kFp32, Shape{32, 14});
  for (const DataType dtype : kTypes) {
    for (const bool int32 : {false, true}) {
      for (const int64_t head_dim : {48, 14, 7}) {
        Both& table = head_dim == 48 ? table_of_48 : table_of_14;
        const bool rotated = head_dim != 7;
        if (rotated) {
          const Buffer made = make_rope_table({}, head_dim, 32);
          std::memcpy(table.host().raw(), made.data(), made.bytes());
          table.upload();
        }
        Both q(dtype, Shape{21, 3 * head_dim});
        Both k(dtype, Shape{7, 2, kPageTokens, head_dim}),
            v(dtype, Shape{7, 2, kPageTokens, head_dim});
        Operand qkv(int32, 21, 7 * head_dim);
        invokeRopeAppend(q.gpu(), {k.gpu(), v.gpu()}, qkv.gpu,
                         rotated ? ConstTensor(table.gpu()) : ConstTensor(), ragged.batch(true),
                         stream());
        invokeRopeAppend(q.host(), {k.host(), v.host()}, qkv.host,
                         rotated ? ConstTensor(table.host()) : ConstTensor(), ragged.batch(false),
                         {});
        q.expect_equal();
        k.expect_equal();  // what no token of the batch owns keeps its pattern
        v.expect_equal();
      }
    }
  }
}

}  // namespace flexq_ft
