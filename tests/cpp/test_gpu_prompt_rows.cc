// The row ops of a GPU on the tokens of a prompt, of which blocks take several: the bits of a few
// rows at a time (test_gpu_rows.cc) and of the CPU. Without a GPU nothing is tested.
#include <cmath>
#include <cstring>
#include <vector>

#include "ft/core/buffer.h"
#include "ft/kernels/activation.h"
#include "ft/kernels/norm.h"
#include "ft/kernels/rope.h"
#include "tests/cpp/check.h"
#include "tests/cpp/gpu_arrays.h"

namespace flexq_ft {

namespace {

constexpr DataType kTypes[] = {DataType::kFp16, DataType::kBf16, DataType::kFp32};

constexpr int64_t kPrompt = 1100, kFewRows = 100;
// A row in two, in four and, longer than a norm takes it so, in eight vectors a thread; groups:
// none, one, of neighbouring lanes.
constexpr int64_t kPromptRows[] = {4104, 8200, 11272};
constexpr int64_t kPromptGroups[] = {0, -1, 128};

Tensor part(Tensor t, int64_t begin, int64_t end) { return t.defined() ? t.rows(begin, end) : t; }

LinearInput part(const LinearInput& x, int64_t begin, int64_t end) {
  LinearInput out = x;
  out.values = part(x.values, begin, end);
  out.codes = part(x.codes, begin, end);
  out.scales = part(x.scales, begin, end);
  return out;
}

Product part(const Product& y, int64_t begin, int64_t end) {
  Product out = y;
  out.values = part(y.values, begin, end);
  if (y.act_scale.defined()) out.act_scale = y.act_scale.rows(begin, end);
  return out;
}

// run(first token, last, what to make): all at once and a few at a time.
template <typename F>
void expect_alike(Input& many, Input& few, const F& run) {
  run(0, kPrompt, many.gpu);
  for (int64_t t = 0; t < kPrompt; t += kFewRows) {
    run(t, t + kFewRows, part(few.gpu, t, t + kFewRows));
  }
  EXPECT(many.values.fetch() == few.values.fetch());
  EXPECT(many.codes.fetch() == few.codes.fetch());
  EXPECT(many.scales.fetch() == few.scales.fetch());
}

}  // namespace

TEST(rows_of_a_prompt_have_the_bits_of_a_few) {
  if (without_gpu()) return;
  for (const DataType dtype : kTypes) {
    const bool int32 = dtype != DataType::kBf16;
    for (const int64_t k : kPromptRows) {
      Both residual(dtype, Shape{kPrompt, k}), again(dtype, Shape{kPrompt, k});
      Both weight(dtype, Shape{k}), bias(dtype, Shape{k});
      residual.random(), weight.random(), bias.random();
      Operand y(int32, kPrompt, k), gate_up(int32, kPrompt, 2 * k);
      gate_up.arrange({k});
      for (const int64_t grouping : kPromptGroups) {
        const int64_t group = grouping < 0 ? k : grouping;
        Input many(dtype, kPrompt, k, group, 8), few(dtype, kPrompt, k, group, 8);
        const NormArgs norm{group == 0 ? NormType::kLayer : NormType::kRms, weight.gpu(),
                            bias.gpu(), 1e-5f};
        residual.upload();
        std::memcpy(again.host().raw(), residual.host().raw(), residual.host().bytes());
        again.upload();
        expect_alike(many, few, [&](int64_t begin, int64_t end, const LinearInput& out) {
          const bool all = end - begin == kPrompt;
          invokeResidualNorm(out, part((all ? residual : again).gpu(), begin, end),
                             part(y.gpu, begin, end), norm, stream());
        });
        EXPECT(residual.fetch() == again.fetch());
        expect_alike(many, few, [&](int64_t begin, int64_t end, const LinearInput& out) {
          invokeGatedActivation(out, part(gate_up.gpu, begin, end), {k}, Activation::kSilu,
                                stream());
        });
        if (group == 0) continue;
        expect_alike(many, few, [](int64_t, int64_t, const LinearInput& out) {
          quantize_values(out, stream());
        });
      }
    }
  }
}

// Rows of zeros, of one value that is not finite, and of values beyond a static scale, beside
// others that the same block takes.
TEST(codes_of_a_prompt_are_those_of_the_cpu) {
  if (without_gpu()) return;
  for (const DataType dtype : kTypes) {
    for (const int64_t k : kPromptRows) {
      Both values(dtype, Shape{kPrompt, k});
      values.random();
      for (int64_t i = 0; i < k; ++i) values.set(700 * k + i, 0.0f);
      values.set(701 * k, INFINITY);
      values.set(702 * k + k / 2, -INFINITY);
      values.set(kPrompt * k - 1, NAN);
      for (const int64_t group : {k, int64_t{64}, int64_t{128}, int64_t{256}}) {
        Input x(dtype, kPrompt, k, group, 8);
        std::memcpy(x.host.values.raw(), values.host().raw(), values.host().bytes());
        x.values.upload();
        const auto check = [&] {
          quantize_values(x.gpu, stream());
          quantize_values(x.host, {});
          x.codes.expect_equal();
          x.scales.expect_equal();
        };
        check();
        if (group != k) continue;
        x.gpu.static_scale = x.host.static_scale = 0.01f;
        check();
      }
    }
  }
}

TEST(rope_append_of_a_prompt_has_the_bits_of_the_cpu) {
  if (without_gpu()) return;
  constexpr int64_t kTokens = 300, kPages = (kTokens + kPageTokens - 1) / kPageTokens;
  std::vector<int32_t> at, order;
  for (int32_t t = 0; t < kTokens; ++t) at.push_back(t);
  for (int32_t p = 0; p < kPages; ++p) order.push_back(static_cast<int32_t>(kPages) - 1 - p);
  Both ids(DataType::kInt32, Shape{kTokens}), positions(DataType::kInt32, Shape{kTokens});
  Both offsets(DataType::kInt32, Shape{2}), context(DataType::kInt32, Shape{1});
  Both pages(DataType::kInt32, Shape{1, kPages});
  ids.values(at), positions.values(at), pages.values(order);
  offsets.values({0, kTokens}), context.values({0});
  const auto batch = [&](bool gpu) -> RaggedBatch {
    const auto side = [&](Both& both) { return ConstTensor(gpu ? both.gpu() : both.host()); };
    return {side(ids), side(positions), side(offsets), side(context), side(pages), 0, kTokens};
  };
  for (const DataType dtype : kTypes) {
    for (const bool int32 : {false, true}) {
      for (const int64_t head_dim : {128, 96}) {
        Both table(DataType::kFp32, Shape{kTokens, head_dim});
        const Buffer made = make_rope_table({}, head_dim, kTokens);
        std::memcpy(table.host().raw(), made.data(), made.bytes());
        table.upload();
        constexpr int64_t kHeads = 37, kKvHeads = 7;
        Both q(dtype, Shape{kTokens, kHeads * head_dim});
        Both k(dtype, Shape{kPages, kKvHeads, kPageTokens, head_dim}),
            v(dtype, Shape{kPages, kKvHeads, kPageTokens, head_dim});
        Operand qkv(int32, kTokens, (kHeads + 2 * kKvHeads) * head_dim);
        invokeRopeAppend(q.gpu(), {k.gpu(), v.gpu()}, qkv.gpu, table.gpu(), batch(true), stream());
        invokeRopeAppend(q.host(), {k.host(), v.host()}, qkv.host, table.host(), batch(false), {});
        q.expect_equal();
        k.expect_equal();
        v.expect_equal();
      }
    }
  }
}

}  // namespace flexq_ft
