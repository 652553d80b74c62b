// The step kernel beside the same step op by op, on random weights: every format, architectures and
// sizes that fit no block, contexts from none to many parts, batches of 1 to 8.
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "ft/bench/step_case.h"
#include "ft/core/error.h"
#include "tests/cpp/check.h"
#include "tests/cpp/folder_fixture.h"
#include "tests/cpp/gpu_arrays.h"

using namespace flexq_test;

namespace {

struct Model {
  const char* name;
  ModelConfig config;
};

ModelConfig llama(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t hidden,
                  int64_t inter) {
  ModelConfig config = small_llama();
  config.num_heads = heads;
  config.num_kv_heads = kv_heads;
  config.head_dim = head_dim;
  config.hidden_size = hidden;
  config.inter_size = inter;
  config.num_layers = 2;
  config.max_positions = 8192;
  return config;
}

ModelConfig opt(int64_t hidden) {
  ModelConfig config = small_opt();
  config.num_heads = config.num_kv_heads = 4;
  config.head_dim = 64;
  config.hidden_size = hidden;
  config.inter_size = 1024;
  config.num_layers = 2;
  config.max_positions = 8192;
  return config;
}

std::vector<Model> models() {
  return {{"odd sizes, three heads share", llama(9, 3, 64, 576, 1568)},
          {"heads of 128", llama(4, 4, 128, 512, 1376)},
          {"eight heads share", llama(8, 1, 128, 1024, 2816)},
          {"wide", llama(32, 8, 128, 4096, 11008)},
          {"opt", opt(256)},
          {"wide opt", opt(7168)}};  // a norm's weights and its biases take two stages each
}

const std::vector<int64_t> kContexts = {200, 0, 1, 15, 16, 63, 500, 1023};

std::unique_ptr<StepCase> make_case(const ModelConfig& config, Scheme scheme, DataType dtype,
                                    const std::vector<int64_t>& contexts = kContexts) {
  EngineOptions options;
  options.dtype = dtype;
  options.scheme = scheme;
  options.device = Device::kCuda;
  options.max_len = 1;
  for (const int64_t context : contexts) options.max_len = std::max(options.max_len, context + 1);
  return std::make_unique<StepCase>(make_folder("no/such/folder", config, scheme, dtype, 1),
                                    options, contexts);
}

cuda::DeviceInfo device() { return cuda::device_info(cuda::current_device()); }

std::vector<uint8_t> bytes_of(Tensor tensor, Stream stream) {
  std::vector<uint8_t> out(tensor.bytes());
  cuda::copy(out.data(), tensor.raw(), out.size(), stream);
  cuda::synchronize(stream);
  return out;
}

std::vector<uint8_t> run_step(StepCase& model, StepKernel& kernel, int64_t first, int64_t count) {
  const Tensor logits = model.logits(count);
  cuda::fill(logits.raw(), kPoison, logits.bytes(), model.stream());
  try {
    kernel.run(logits, model.batch(first, count), model.stream());
    return bytes_of(logits, model.stream());
  } catch (const Error&) {
    kernel.throw_fault();  // says where, if it was a wait
    throw;
  }
}

double difference(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b, DataType dtype) {
  double error = 0.0, size = 0.0;
  dispatch_float(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto* x = reinterpret_cast<const T*>(a.data());
    const auto* y = reinterpret_cast<const T*>(b.data());
    for (size_t i = 0; i < a.size() / sizeof(T); ++i) {
      const double u = to_float(x[i]), v = to_float(y[i]);
      error += (u - v) * (u - v);
      size += u * u;
    }
  });
  return std::sqrt(error / size);
}

// Relative, of two layers: a rounding that falls the other way moves a code of 31 steps.
double limit_of(Scheme scheme, DataType dtype) {
  const double of_type = dtype == DataType::kFp16 ? 1.0 : 8.0;
  return of_type * (scheme == Scheme::kFloat || scheme == Scheme::kW8A16 ? 2e-3
                    : scheme == Scheme::kW8A8                            ? 4e-3
                                                                         : 1.5e-2);
}

bool skip() {
  if (without_gpu()) return true;
  if (device().major == 9) return false;
  std::printf("not a GPU of compute capability 9.0: not tested\n");
  return true;
}

std::vector<Scheme> schemes() {
  return {Scheme::kFloat, Scheme::kW8A16, Scheme::kW8A8, Scheme::kW6Ax};
}

// Logits and cache of batches of 1 to 8.
void check_against_ops(const Model& m, Scheme scheme, DataType dtype) {
  const auto model = make_case(m.config, scheme, dtype);
  const std::string why = StepKernel::refusal(model->model(), device());
  EXPECT_EQ(why, "");
  if (!why.empty()) return;
  StepKernel kernel(model->model(), device(), model->stream());
  for (const int64_t count : {1, 2, 3, 8}) {
    if (count > kernel.most_tokens()) continue;
    model->fill_cache();
    const Tensor logits = model->logits(count);
    model->run_ops(logits, model->batch(0, count));
    const auto expected = bytes_of(logits, model->stream());
    std::vector<std::vector<uint8_t>> cache;
    for (const KvPages& layer : model->cache().layers()) {
      cache.push_back(bytes_of(layer.k, model->stream()));
      cache.push_back(bytes_of(layer.v, model->stream()));
    }
    model->fill_cache();
    const auto got = run_step(*model, kernel, 0, count);
    const double error = difference(expected, got, DataType::kFp32);
    double cache_error = 0.0;
    for (size_t i = 0; i < cache.size(); ++i) {
      const KvPages& layer = model->cache().layers()[i / 2];
      const auto now = bytes_of(i % 2 == 0 ? layer.k : layer.v, model->stream());
      cache_error = std::max(cache_error, difference(cache[i], now, dtype));
    }
    const bool fine = error < limit_of(scheme, dtype) && cache_error < limit_of(scheme, dtype);
    if (!fine || has_option("--show")) {
      std::printf("%s, %s %s, %d sequences: logits %.2e, cache %.2e\n", m.name, to_string(scheme),
                  to_string(dtype), static_cast<int>(count), error, cache_error);
    }
    EXPECT(fine);
  }
}

}  // namespace

TEST(logits_and_cache_are_those_of_the_ops) {
  if (skip()) return;
  for (const Model& m : models()) {
    if (has_option("--small") && m.config.hidden_size > 600) continue;
    for (const Scheme scheme : schemes()) {
      for (const DataType dtype : {DataType::kFp16, DataType::kBf16}) {
        check_against_ops(m, scheme, dtype);
      }
    }
  }
}

// 1,000 channels are 125 bands: in the files gate ends and up begins in the middle of a tile, and
// the down projection's k ends in the middle of sixteen. Other formats' rows are no whole steps of
// the ring then.
TEST(an_odd_number_of_bands_of_gate_and_up) {
  if (skip()) return;
  const Model odd = {"an odd number of bands", llama(4, 2, 64, 256, 1000)};
  for (const DataType dtype : {DataType::kFp16, DataType::kBf16}) {
    check_against_ops(odd, Scheme::kW6Ax, dtype);
  }
  for (const Scheme scheme : {Scheme::kFloat, Scheme::kW8A16, Scheme::kW8A8}) {
    const auto model = make_case(odd.config, scheme, DataType::kFp16, {3});
    const std::string why = StepKernel::refusal(model->model(), device());
    EXPECT(why.find("not a multiple of 32") != std::string::npos);
  }
}

namespace {

// The step kernels of every scheme, of a small model and of a wide one, of which a warp has more of
// a token's groups the more tokens there are.
template <typename Check>
void with_kernels(const Check& check) {
  for (const size_t which : {0, 3}) {
    if (which == 3 && has_option("--small")) continue;
    for (const Scheme scheme : schemes()) {
      const auto model = make_case(models()[which].config, scheme, DataType::kFp16);
      model->fill_cache();
      StepKernel kernel(model->model(), device(), model->stream());
      check(*model, kernel);
    }
  }
}

}  // namespace

TEST(a_sequence_has_the_same_bits_in_every_batch) {
  if (skip()) return;
  with_kernels([](StepCase& model, StepKernel& kernel) {
    const auto together = run_step(model, kernel, 0, kernel.most_tokens());
    const size_t row = together.size() / static_cast<size_t>(kernel.most_tokens());
    for (int64_t s = 0; s < kernel.most_tokens(); ++s) {
      const auto alone = run_step(model, kernel, s, 1);
      EXPECT(std::memcmp(alone.data(), together.data() + static_cast<size_t>(s) * row, row) == 0);
    }
  });
}

TEST(pairs_of_blocks_change_nothing) {
  if (skip()) return;
  with_kernels([](StepCase& model, StepKernel& kernel) {
    for (const int64_t count : {2, 3, 5, 8}) {
      if (count > kernel.most_tokens()) continue;
      kernel.set_pairs(true);
      const auto paired = run_step(model, kernel, 0, count);
      kernel.set_pairs(false);
      EXPECT(run_step(model, kernel, 0, count) == paired);
    }
  });
}

TEST(a_step_repeated_has_the_same_bits) {
  if (skip()) return;
  const int times = has_option("--small") ? 3 : 1000;
  for (const Scheme scheme : schemes()) {
    for (const int64_t count : {1, 4}) {
      const auto model = make_case(models()[1].config, scheme, DataType::kFp16);
      StepKernel kernel(model->model(), device(), model->stream());
      const auto first = run_step(*model, kernel, 0, count);
      bool same = true;
      for (int i = 0; i < times && same; ++i) same = run_step(*model, kernel, 0, count) == first;
      EXPECT(same);
    }
  }
}

TEST(delays_and_poisoned_buffers_change_nothing) {
  if (skip()) return;
  for (const Scheme scheme : schemes()) {
    for (const int64_t count : {1, 2, 3, 8}) {
      const auto model = make_case(models()[2].config, scheme, DataType::kBf16);
      StepKernel kernel(model->model(), device(), model->stream());
      const auto expected = run_step(*model, kernel, 0, count);
      const Tensor exchange = kernel.exchange();
      for (uint32_t seed = 1; seed < (has_option("--small") ? 2u : 12u); ++seed) {
        cuda::fill(exchange.raw(), kPoison, exchange.bytes(), model->stream());
        kernel.set_disturbance({20000, seed, -1});
        EXPECT(run_step(*model, kernel, 0, count) == expected);
      }
    }
  }
}

// Up to eight: the columns of a tile.
TEST(any_number_of_query_heads_shares) {
  if (skip()) return;
  for (const int64_t head_dim : {64, 128}) {
    for (int64_t sharing = 1; sharing <= 8; ++sharing) {
      if (has_option("--small") && sharing % 2 == 0) continue;
      const std::string name = std::to_string(sharing) + " of " + std::to_string(head_dim);
      const int64_t heads = 2 * sharing;
      const Model m = {name.c_str(), llama(heads, 2, head_dim, heads * head_dim, 1024)};
      for (const DataType dtype : {DataType::kFp16, DataType::kBf16}) {
        check_against_ops(m, Scheme::kFloat, dtype);
      }
    }
  }
}

// A part of the last model is more than a warp takes the exponentials of, for each of seven heads.
TEST(long_contexts_are_cut_into_parts) {
  if (skip() || has_option("--small")) return;
  for (const ModelConfig& config : {models()[0].config, models()[1].config, models()[2].config,
                                    llama(28, 4, 128, 3584, 1024)}) {
    const auto model = make_case(config, Scheme::kFloat, DataType::kFp16, {8191, 4000});
    StepKernel kernel(model->model(), device(), model->stream());
    const Tensor logits = model->logits(2);
    model->run_ops(logits, model->batch(0, 2));
    const auto expected = bytes_of(logits, model->stream());
    model->fill_cache();
    EXPECT(difference(expected, run_step(*model, kernel, 0, 2), DataType::kFp32) < 2e-3);
  }
}

// The rest of a sequence's last page holds what an earlier sequence left there.
TEST(what_lies_behind_a_context_changes_nothing) {
  if (skip()) return;
  for (const size_t which : {0, 1, 2}) {
    const std::vector<int64_t> contexts = {5, 16, 47, 200};
    const auto model = make_case(models()[which].config, Scheme::kFloat, DataType::kFp16, contexts);
    StepKernel kernel(model->model(), device(), model->stream());
    const auto sequences = static_cast<int64_t>(contexts.size());
    const RaggedBatch batch = model->batch(0, sequences);
    const auto expected = run_step(*model, kernel, 0, sequences);
    std::vector<int32_t> pages(batch.pages.bytes() / 4);
    cuda::copy(pages.data(), batch.pages.raw(), batch.pages.bytes(), model->stream());
    cuda::synchronize(model->stream());
    for (const KvPages& layer : model->cache().layers()) {
      for (const Tensor& kv : {layer.k, layer.v}) {
        const size_t row = static_cast<size_t>(kv.dim(3)) * 2;
        for (int64_t s = 0; s < sequences; ++s) {
          const int64_t context = contexts[static_cast<size_t>(s)], kept = context % kPageTokens;
          const int64_t page =
              pages[static_cast<size_t>(s * batch.pages.dim(1) + context / kPageTokens)];
          for (int64_t head = 0; head < kv.dim(1); ++head) {
            const auto at = static_cast<size_t>((page * kv.dim(1) + head) * kPageTokens + kept);
            cuda::fill(static_cast<uint8_t*>(kv.raw()) + at * row, 0xff,  // NaN
                       static_cast<size_t>(kPageTokens - kept) * row, model->stream());
          }
        }
      }
    }
    EXPECT(run_step(*model, kernel, 0, sequences) == expected);
  }
}

TEST(what_it_does_not_take_is_said) {
  if (skip()) return;
  const auto model = make_case(models()[1].config, Scheme::kFloat, DataType::kFp16, {3});
  cuda::DeviceInfo other = device();
  other.major = 8;
  other.minor = 0;
  EXPECT(StepKernel::refusal(model->model(), other).find("8.0") != std::string::npos);
  const auto odd = make_case(llama(3, 3, 96, 288, 320), Scheme::kFloat, DataType::kFp16, {3});
  EXPECT(StepKernel::refusal(odd->model(), device()).find("96") != std::string::npos);
}
