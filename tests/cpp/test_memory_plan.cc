#include "ft/decoding/memory_plan.h"

#include <string>

#include "ft/core/cuda.h"
#include "ft/decoding/kv_cache.h"
#include "tests/cpp/check.h"
#include "tests/cpp/folder_fixture.h"

using namespace flexq_ft;
using namespace flexq_test;

namespace {

EngineOptions resolved() {
  EngineOptions options;
  options.dtype = DataType::kFp32;
  options.scheme = Scheme::kFloat;
  options.lm_head = HeadFormat::kFloat;
  options.max_len = 64;
  options.max_batch = 8;
  return options;
}

// What the engine holds with a cache of so many pages.
size_t total(const ModelFolder& folder, int64_t pages) {
  EngineOptions options = resolved();
  options.kv_pages = pages;
  return plan_memory(folder, options, 0).total();
}

}  // namespace

TEST(the_cache_shrinks_to_what_fits_and_keeps_one_whole_sequence) {
  const ModelFolder folder =
      make_folder("unused", small_llama(), Scheme::kFloat, DataType::kFp32, 1);
  const int64_t one = pages_for(64);
  EXPECT_EQ(fit_kv_pages(folder, resolved(), 0, 1, 0), 8 * one);  // nothing known: all
  EXPECT_EQ(fit_kv_pages(folder, resolved(), 0, 1, 2 * total(folder, 8 * one)), 8 * one);
  const int64_t half = fit_kv_pages(folder, resolved(), 0, 1, total(folder, 4 * one));
  EXPECT(half >= one && half < 4 * one);  // a tenth stays free
  EXPECT_EQ(fit_kv_pages(folder, resolved(), 0, 1, total(folder, one)), one);
  EXPECT_EQ(fit_kv_pages(folder, resolved(), 0, 2, 2 * total(folder, one)), one);
}

TEST(too_little_for_one_sequence_is_out_of_memory_with_a_length_that_fits) {
  const ModelFolder folder =
      make_folder("unused", small_llama(), Scheme::kFloat, DataType::kFp32, 1);
  const size_t less = total(folder, pages_for(64)) - 1;
  EXPECT_THROW(fit_kv_pages(folder, resolved(), 0, 1, less), Error, "the model needs");
  try {
    fit_kv_pages(folder, resolved(), 0, 1, less);
  } catch (const Error& error) {
    EXPECT(error.kind() == ErrorKind::kOutOfMemory);
    EXPECT(error.hint().find("--max-len 48") != std::string::npos);
  }
}

namespace {

// A LLaMA-7B, which nothing is allocated for.
ModelFolder large(Scheme scheme, int tp) {
  ModelConfig config = small_llama();
  config.vocab_size = 32000;
  config.hidden_size = 4096;
  config.num_layers = 32;
  config.num_heads = config.num_kv_heads = 32;
  config.head_dim = 128;
  config.inter_size = 11008;
  config.max_positions = 4096;
  return make_folder("unused", config, scheme, DataType::kFp16, tp);
}

EngineOptions on_gpu(Scheme scheme) {
  EngineOptions options;
  options.device = Device::kCuda;
  options.dtype = DataType::kFp16;
  options.scheme = scheme;
  options.lm_head = HeadFormat::kFloat;
  options.max_len = 2048;
  options.max_batch = 16;
  options.prefill_tokens = 2048;
  options.kv_pages = pages_for(2048);
  return options;
}

constexpr size_t kMebi = size_t{1} << 20;

// The GPU's own workspaces need a GPU where there is CUDA: they depend on it.
bool has_sizes() { return !cuda::built() || cuda::device_count() > 0; }

std::string refusal(const ModelFolder& folder, const EngineOptions& options, size_t available) {
  try {
    fit_kv_pages(folder, options, 0, 1, available);
  } catch (const Error& error) {
    EXPECT(error.kind() == ErrorKind::kOutOfMemory);
    return std::string(error.what()) + " | " + error.cause() + " | " + error.hint();
  }
  EXPECT(false);
  return {};
}

}  // namespace

TEST(a_gpu_holds_rows_without_padding_and_a_page_for_idle_rows) {
  if (!has_sizes()) return;
  const ModelFolder folder = large(Scheme::kFloat, 1);
  const MemoryPlan plan = plan_memory(folder, on_gpu(Scheme::kFloat), 0);
  const size_t linears = size_t{32} * (4 * 4096 * 4096 + 3 * 4096 * 11008) * 2;
  const size_t tables = size_t{2} * 32000 * 4096 * 2 + size_t{2048} * 128 * 4;
  EXPECT_EQ(plan[MemoryKind::kWeights], linears + tables);
  EXPECT_EQ(plan[MemoryKind::kKvCache], size_t{32} * 2 * 32 * 128 * 2 * (2048 + 16));
  const MemoryPlan half = plan_memory(large(Scheme::kFloat, 2), on_gpu(Scheme::kFloat), 1);
  EXPECT_EQ(half[MemoryKind::kKvCache], plan[MemoryKind::kKvCache] / 2);
  const MemoryPlan int8 = plan_memory(folder, on_gpu(Scheme::kW8A16), 0);
  EXPECT_EQ(int8[MemoryKind::kWeights],
            linears / 2 + tables + size_t{32} * (5 * 4096 + 2 * 11008) * 4);
  const MemoryPlan int6 = plan_memory(large(Scheme::kW6Ax, 1), on_gpu(Scheme::kW6Ax), 0);
  EXPECT_EQ(int6[MemoryKind::kWeights], linears / 16 * 49 / 8 + tables);  // 6.125 bits of 16
  if (cuda::built()) {
    EXPECT_EQ(int6[MemoryKind::kWorkspace],
              plan[MemoryKind::kWorkspace] + w6ax_gemm_workspace_bytes());
  }
}

// A rotary table, here of 64 MiB, is no part of what is loaded.
TEST(a_region_has_room_for_what_is_loaded_and_little_more) {
  const auto rounded = [](int64_t bytes) { return static_cast<size_t>((bytes + 255) / 256 * 256); };
  const int64_t linears[][2] = {{3 * 4096, 4096}, {4096, 4096}, {2 * 11008, 4096}, {4096, 11008}};
  for (const Scheme scheme : {Scheme::kFloat, Scheme::kW8A16, Scheme::kW8A8, Scheme::kW6Ax}) {
    const bool int6 = scheme == Scheme::kW6Ax, int8 = is_w8(scheme);
    size_t layer = 2 * rounded(4096 * 2);
    for (const auto& [n, k] : linears) {
      layer += rounded(int6 ? n * k * 6 / 8 : int8 ? n * k : n * k * 2);
      layer += int6 ? rounded(n * k / 128 * 2) : int8 ? rounded(n * 4) : 0;
    }
    const size_t loaded = 32 * layer + 2 * rounded(int64_t{32000} * 4096 * 2) + rounded(4096 * 2);
    EngineOptions options = on_gpu(scheme);
    options.max_len = 131072;
    const size_t region = weight_region_bytes(large(scheme, 1), options, 0);
    EXPECT(loaded <= region);
    EXPECT(region <= loaded + loaded / 500);
  }
}

TEST(a_quantised_head_is_planned_as_such) {
  if (!has_sizes()) return;
  EngineOptions options = on_gpu(Scheme::kFloat);
  const ModelFolder folder = large(Scheme::kFloat, 1);
  const MemoryPlan floats = plan_memory(folder, options, 0);
  const size_t count = size_t{32000} * 4096;
  options.lm_head = HeadFormat::kW8;
  const MemoryPlan int8 = plan_memory(folder, options, 0);
  EXPECT_EQ(floats[MemoryKind::kWeights] - int8[MemoryKind::kWeights], count - 32000 * 4);
  EXPECT_EQ(floats[MemoryKind::kWorkspace], int8[MemoryKind::kWorkspace]);
  options.lm_head = HeadFormat::kW6;
  const MemoryPlan int6 = plan_memory(folder, options, 0);
  EXPECT_EQ(floats[MemoryKind::kWeights] - int6[MemoryKind::kWeights],
            2 * count - count / 8 * 49 / 8);
  if (cuda::built()) {
    EXPECT_EQ(int6[MemoryKind::kWorkspace],
              floats[MemoryKind::kWorkspace] + w6ax_gemm_workspace_bytes());
  }
}

TEST(a_rank_fills_its_gpu_and_shares_it_with_none) {
  if (!has_sizes()) return;
  const ModelFolder folder = large(Scheme::kFloat, 1);
  EngineOptions options = on_gpu(Scheme::kFloat);
  const size_t one = plan_memory(folder, options, 0).total();
  options.kv_pages = 3 * pages_for(2048);
  const size_t three = plan_memory(folder, options, 0).total();
  options.kv_pages = 0;
  EXPECT_EQ(fit_kv_pages(folder, options, 0, 4, three), 3 * pages_for(2048));
  EXPECT_EQ(fit_kv_pages(folder, options, 0, 4, three - 1), 3 * pages_for(2048) - 1);
  EXPECT_EQ(fit_kv_pages(folder, options, 0, 4, one), pages_for(2048));
  EXPECT_EQ(fit_kv_pages(folder, options, 0, 1, 100 * one), 16 * pages_for(2048));
}

TEST(a_full_gpu_is_an_error_with_every_way_out_that_works) {
  if (!has_sizes()) return;
  const ModelFolder folder = large(Scheme::kFloat, 1);
  const EngineOptions options = on_gpu(Scheme::kFloat);
  const size_t one = plan_memory(folder, options, 0).total();
  const std::string close = refusal(folder, options, one - kMebi);
  EXPECT(close.find("of GPU 0, and") != std::string::npos);
  EXPECT(close.find("KV cache of one sequence of 2048 tokens 1032 MiB") != std::string::npos);
  EXPECT(close.find("--max-len 20") != std::string::npos);
  EXPECT(close.find("--max-batch ") != std::string::npos);
  EXPECT(close.find("--scheme w8a16") != std::string::npos);
  EXPECT(close.find("--tp 2 (2 GPUs, of a folder converted for them)") != std::string::npos);
  const std::string far = refusal(folder, options, 4000 * kMebi);
  EXPECT(far.find("--max-len") == std::string::npos);
  EXPECT(far.find("--scheme") == std::string::npos);
  EXPECT(far.find("--tp 4") != std::string::npos);
  const std::string never = refusal(folder, options, 10 * kMebi);
  EXPECT(never.find("a GPU with more memory") != std::string::npos);
  const ModelFolder int8 = large(Scheme::kW8A8, 1);
  EXPECT(refusal(int8, on_gpu(Scheme::kW8A8), 5000 * kMebi).find("--scheme") == std::string::npos);
}
