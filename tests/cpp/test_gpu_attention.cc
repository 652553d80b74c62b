// Attention on a GPU, one small problem for every instance of every kernel, against the CPU. What
// is written starts as NaN patterns between guard bands, and so does what a batch does not see of
// the cache. Meant for compute-sanitizer, too; tests/runtime/test_gpu_attention.py goes further.
// Without a GPU nothing is tested.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "ft/core/buffer.h"
#include "ft/core/cuda.h"
#include "ft/kernels/attention.h"
#include "tests/cpp/check.h"
#include "tests/cpp/gpu_arrays.h"

namespace flexq_ft {

namespace {

using Sequences = std::vector<std::pair<int, int>>;  // tokens in the cache, new tokens

struct Problem {
  DataType dtype;
  int64_t heads, kv_heads, head_dim;
  Sequences sequences;
  int64_t group = 0;  // 0: no codes
};

int64_t tokens_of(const Sequences& sequences) {
  int64_t tokens = 0;
  for (const auto& [context, count] : sequences) tokens += count;
  return tokens;
}

int pages_of(const Sequences& sequences) {  // of the longest
  int pages = 0;
  for (const auto& [context, count] : sequences) {
    pages = std::max(pages, (context + count + kPageTokens - 1) / kPageTokens);
  }
  return pages;
}

// Tensors of a problem on both sides. Sequences use every other page; the rest stays NaN.
struct Arrays {
  Both q, k, v, positions, offsets, context, pages;
  int64_t decodes = 0, longest = 0;

  explicit Arrays(const Problem& p)
      : q(p.dtype, Shape{tokens_of(p.sequences), p.heads * p.head_dim}),
        k(p.dtype, cache_shape(p)),
        v(p.dtype, cache_shape(p)),
        positions(DataType::kInt32, Shape{tokens_of(p.sequences)}),
        offsets(DataType::kInt32, Shape{sequences(p) + 1}),
        context(DataType::kInt32, Shape{sequences(p)}),
        pages(DataType::kInt32, Shape{sequences(p), pages_of(p.sequences) + 3}) {
    fill(p);
    for (Both* array : {&q, &k, &v, &positions, &offsets, &context, &pages}) array->upload();
  }

  RaggedBatch batch(bool gpu) {
    const auto side = [gpu](Both& array) { return gpu ? array.gpu() : array.host(); };
    RaggedBatch out;
    out.positions = side(positions);
    out.offsets = side(offsets);
    out.context = side(context);
    out.pages = side(pages);
    out.decodes = decodes;
    out.longest = longest;
    return out;
  }

  size_t workspace_bytes(const Problem& p) {
    const int64_t positions = pages.host().dim(1) * kPageTokens;
    return attention_workspace_bytes({decodes, p.heads, p.kv_heads, p.head_dim, positions},
                                     Device::kCuda);
  }

 private:
  static int64_t sequences(const Problem& p) { return static_cast<int64_t>(p.sequences.size()); }
  static Shape cache_shape(const Problem& p) {
    return Shape{2 * sequences(p) * pages_of(p.sequences), p.kv_heads, kPageTokens, p.head_dim};
  }

  void fill(const Problem& p) {
    std::mt19937 engine(20250311);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < q.host().count(); ++i) q.set(i, normal(engine));
    int token = 0;
    offsets.data<int32_t>()[0] = 0;
    for (size_t s = 0; s < p.sequences.size(); ++s) {
      const auto [before, count] = p.sequences[s];
      context.data<int32_t>()[s] = before;
      for (int i = 0; i < count; ++i) positions.data<int32_t>()[token++] = before + i;
      offsets.data<int32_t>()[s + 1] = token;
      if (count == 1 && decodes == static_cast<int64_t>(s)) {
        ++decodes;
      } else {
        longest = std::max<int64_t>(longest, count);
      }
      const int most = pages_of(p.sequences);
      int32_t* row = pages.data<int32_t>() + s * (static_cast<size_t>(most) + 3);
      for (int i = 0; i * kPageTokens < before + count; ++i) {
        row[i] = 2 * (static_cast<int>(s) * most + most - 1 - i) + 1;
      }
      for (int position = 0; position < before + count; ++position) {
        const int64_t page = row[position / kPageTokens];
        for (int64_t h = 0; h < p.kv_heads; ++h) {
          const int64_t at =
              ((page * p.kv_heads + h) * kPageTokens + position % kPageTokens) * p.head_dim;
          for (int64_t d = 0; d < p.head_dim; ++d) {
            k.set(at + d, normal(engine));
            v.set(at + d, normal(engine));
          }
        }
      }
    }
  }
};

void expect_close(Both& got, Both& want, DataType dtype) {
  const double limit = dtype == DataType::kFp32 ? 1e-10 : dtype == DataType::kFp16 ? 1e-6 : 1e-5;
  double cross = 0.0, total = 0.0;
  for (int64_t i = 0; i < want.host().count(); ++i) {
    const double g = got.get(i), w = want.get(i);
    cross += g * w;
    total += g * g + w * w;
  }
  EXPECT(std::fabs(1.0 - 2.0 * cross / total) <= limit);
}

// values false: codes alone are asked for, as the engine does.
void check(const Problem& p, bool values) {
  Arrays arrays(p);
  const int64_t tokens = tokens_of(p.sequences), k = p.heads * p.head_dim;
  const int64_t groups = p.group == 0 ? 0 : (k + p.group - 1) / p.group;
  Both want(p.dtype, Shape{tokens, k}), got(p.dtype, Shape{tokens, k});
  Both codes(DataType::kInt8, Shape{tokens, groups * p.group});
  Both scales(DataType::kFp32, Shape{tokens, groups});
  const size_t bytes = arrays.workspace_bytes(p);
  Both workspace(DataType::kUint8, Shape{static_cast<int64_t>(bytes)});

  LinearInput cpu_out;
  cpu_out.dtype = p.dtype;
  cpu_out.values = want.host();
  invokeAttention(cpu_out, arrays.q.host(), {arrays.k.host(), arrays.v.host()}, arrays.batch(false),
                  {}, Stream{});
  LinearInput out;
  out.dtype = p.dtype;
  if (values) out.values = got.gpu();
  if (p.group > 0) {
    out.codes = codes.gpu();
    out.scales = scales.gpu();
    out.group = p.group;
    out.act_bits = 8;
  }
  const auto run = [&] {
    invokeAttention(out, arrays.q.gpu(), {arrays.k.gpu(), arrays.v.gpu()}, arrays.batch(true),
                    workspace.gpu(), stream());
  };
  run();
  for (Both* array : {&got, &codes, &scales, &workspace}) array->download();
  if (values) expect_close(got, want, p.dtype);
  if (p.group == 0) return;
  // The same codes, from the values where they are known, or of nearly the same values.
  Both want_codes(DataType::kInt8, Shape{tokens, groups * p.group});
  Both want_scales(DataType::kFp32, Shape{tokens, groups});
  LinearInput again{values ? got.host() : want.host(),
                    want_codes.host(),
                    want_scales.host(),
                    p.dtype,
                    p.group,
                    8};
  quantize_values(again, Stream{});
  for (int64_t i = 0; i < codes.host().count(); ++i) {
    const int apart = codes.data<int8_t>()[i] - want_codes.data<int8_t>()[i];
    EXPECT(values ? apart == 0 : std::abs(apart) <= 3);
  }
  for (int64_t i = 0; i < scales.host().count(); ++i) {
    const float g = scales.get(i), w = want_scales.get(i);
    EXPECT(values ? g == w : std::fabs(g - w) <= 0.02f * w);
  }
  if (p.group != 128) return;
  ByGroup by_group(tokens, groups);
  by_group.describe(out);
  arrays.q.upload();  // without values the op may use it up
  run();
  by_group.expect_equal(codes.data<int8_t>(), scales.data<float>());
}

const Sequences kMixed = {{0, 1}, {70, 1}, {16, 1}, {0, 70}, {33, 5}, {15, 1}};

}  // namespace

TEST(every_head_size) {
  if (without_gpu()) return;
  for (const DataType dtype : {DataType::kFp16, DataType::kBf16}) {
    for (const int64_t head_dim : {16, 64, 80, 96, 128, 200, 256, 20}) {
      check({dtype, 3, 1, head_dim, kMixed}, true);
    }
  }
  check({DataType::kFp32, 3, 1, 20, kMixed}, true);
}

TEST(many_query_heads_of_a_kv_head) {
  if (without_gpu()) return;
  check({DataType::kFp16, 18, 2, 64, kMixed}, true);
}

TEST(a_sequence_of_many_parts) {
  if (without_gpu()) return;
  check({DataType::kFp16, 2, 2, 128, {{1100, 1}, {0, 1}, {4200, 1}}}, true);
  // Few KV heads have more parts than a thread of the combining kernel adds up.
  check({DataType::kFp16, 4, 1, 128, {{9000, 1}, {1, 1}, {2049, 1}}, 512}, false);
  check({DataType::kBf16, 20, 10, 64, {{5000, 1}, {800, 1}}, 128}, true);
}

// Enough rows and heads for the larger tiles; few positions.
TEST(large_tiles) {
  if (without_gpu()) return;
  for (const DataType dtype : {DataType::kFp16, DataType::kBf16}) {
    for (const int64_t head_dim : {64, 96, 128}) {
      check({dtype, 128, 1, head_dim, {{0, 130}, {5, 140}}}, true);
    }
    check({dtype, 128, 4, 128, {{0, 130}, {5, 140}}, 128}, true);
    check({dtype, 128, 4, 128, {{0, 130}, {5, 140}}, 128}, false);
  }
}

// Sequences that end, and queries that begin, at the borders of tiles of 64 and 128; of few heads
// and of enough for the larger tiles.
TEST(borders_of_tiles) {
  if (without_gpu()) return;
  const Sequences lengths = {{90, 1},   {0, 63},   {0, 64},  {0, 65},    {0, 127},
                             {0, 128},  {0, 129},  {127, 2}, {128, 64},  {129, 65},
                             {255, 17}, {256, 16}, {383, 2}, {120, 130}, {1, 256}};
  for (const int64_t head_dim : {64, 128}) {
    for (const int64_t heads : {4, 16}) {
      check({DataType::kFp16, heads, 2, head_dim, lengths}, true);
      check({DataType::kBf16, heads, 2, head_dim, lengths}, true);
    }
  }
}

// A warp looks through the lengths of 32 sequences at a time; in small tiles and in larger ones.
TEST(more_sequences_than_a_warp_has_lanes) {
  if (without_gpu()) return;
  Sequences lengths = {{5, 1}, {0, 1}, {40, 1}};
  for (int i = 0; i < 70; ++i) lengths.push_back({i % 3 * 7, i == 33 ? 200 : 1 + i * 5 % 23});
  for (const int64_t head_dim : {64, 128}) {
    for (const int64_t heads : {2, 6}) check({DataType::kFp16, heads, 2, head_dim, lengths}, true);
  }
}

// The same bits from pages that lie behind 2^32 values of a cache, of whose other pages none is
// read.
TEST(pages_far_into_a_large_cache) {
  if (without_gpu()) return;
  for (const int64_t head_dim : {20, 96, 128}) {
    const Problem p{DataType::kFp16, 6, 2, head_dim, kMixed};
    Arrays arrays(p);
    const int64_t pages = arrays.k.host().dim(0);
    const size_t bytes = arrays.k.host().bytes(), page = bytes / static_cast<size_t>(pages);
    const size_t before = (size_t{1} << 33) / page + 1;  // pages
    const size_t all = before * page + 2 * bytes;
    if (cuda::free_bytes() < all + (size_t{1} << 28)) {
      std::printf("%zu bytes of the GPU are free, and %zu are needed: not tested\n",
                  cuda::free_bytes(), all);
      return;
    }
    const auto run = [&](const KvPages& kv) {
      Both got(p.dtype, arrays.q.host().shape());
      Both workspace(DataType::kUint8, Shape{static_cast<int64_t>(arrays.workspace_bytes(p))});
      LinearInput out;
      out.dtype = p.dtype;
      out.values = got.gpu();
      invokeAttention(out, arrays.q.gpu(), kv, arrays.batch(true), workspace.gpu(), stream());
      return got.fetch();
    };
    const std::vector<uint8_t> want = run({arrays.k.gpu(), arrays.v.gpu()});

    // Values begin a small cache behind keys: they share what lies in front, which is NaN.
    const Buffer memory(all, MemoryKind::kKvCache, Device::kCuda);
    char* const keys = static_cast<char*>(memory.data());
    char* const values = keys + bytes;
    cuda::fill(keys, kPoison, all, stream());
    cuda::copy(keys + before * page, arrays.k.gpu().raw(), bytes, stream());
    cuda::copy(values + before * page, arrays.v.gpu().raw(), bytes, stream());
    for (int64_t i = 0; i < arrays.pages.host().count(); ++i) {
      arrays.pages.data<int32_t>()[i] += static_cast<int32_t>(before);
    }
    arrays.pages.upload();
    const Shape shape{static_cast<int64_t>(before) + pages, p.kv_heads, kPageTokens, head_dim};
    EXPECT(run({Tensor(keys, p.dtype, shape, Device::kCuda),
                Tensor(values, p.dtype, shape, Device::kCuda)}) == want);
  }
}

TEST(codes) {
  if (without_gpu()) return;
  for (const DataType dtype : {DataType::kFp16, DataType::kBf16}) {
    for (const bool values : {true, false}) {
      check({dtype, 4, 2, 128, kMixed, 512}, values);
      check({dtype, 4, 2, 128, kMixed, 128}, values);
      check({dtype, 3, 1, 64, kMixed, 128}, values);
      check({dtype, 1, 1, 64, kMixed, 64}, values);
      check({dtype, 2, 1, 256, kMixed, 256}, values);
    }
  }
}

}  // namespace flexq_ft
