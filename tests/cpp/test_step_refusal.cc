// Shapes that the step kernel does not take, as its refusal says them; no GPU is asked.
#include <string>
#include <vector>

#include "ft/step/step_kernel.h"
#include "tests/cpp/check.h"
#include "tests/cpp/folder_fixture.h"

using namespace flexq_test;

namespace {

std::string refusal(const ModelConfig& config) {
  cuda::DeviceInfo device;
  device.major = 9;
  ModelWeights weights;
  weights.layers.resize(1);
  const std::vector<KvPages> cache;
  return StepKernel::refusal({config, weights, {}, cache}, device);
}

ModelConfig with_heads_of_64(ModelConfig config, int64_t hidden) {
  config.head_dim = 64;
  config.hidden_size = hidden;
  config.inter_size = 1024;
  return config;
}

}  // namespace

TEST(heads_of_other_sizes) {
  ModelConfig config = with_heads_of_64(small_llama(), 384);
  config.head_dim = 96;
  EXPECT_EQ(refusal(config), "heads of 96 columns, neither 64 nor 128");
}

// Gate and up lie in whole bands of eight rows, or not in turn at all.
TEST(gates_that_are_no_whole_bands) {
  ModelConfig config = with_heads_of_64(small_llama(), 384);
  config.inter_size = 1020;
  EXPECT_EQ(refusal(config), "a gated feed-forward of 1020 columns, not a multiple of 8");
  config.inter_size = 1000;
  EXPECT(refusal(config).find("gated") == std::string::npos);
  config.inter_size = 1020;
  config.gated_ffn = false;
  EXPECT(refusal(config).find("gated") == std::string::npos);
}

TEST(a_norm_that_is_wider_than_the_ring) {
  EXPECT_EQ(refusal(with_heads_of_64(small_opt(), 18440)),
            "a layer norm of 18440 columns, more than 18432");
  EXPECT_EQ(refusal(with_heads_of_64(small_llama(), 36872)),
            "an RMS norm of 36872 columns, more than 36864");
  EXPECT(refusal(with_heads_of_64(small_opt(), 18432)).find("norm") == std::string::npos);
  EXPECT(refusal(with_heads_of_64(small_llama(), 36864)).find("norm") == std::string::npos);
}

// The plan counts 15 bits of units of 16 rows.
TEST(a_product_of_more_rows_than_a_plan_counts) {
  ModelConfig config = with_heads_of_64(small_llama(), 384);
  config.vocab_size = 524273;
  EXPECT_EQ(refusal(config), "a product of 524273 rows, more than 524272");
  config.vocab_size = 524272;
  EXPECT(refusal(config).find("rows") == std::string::npos);
  config.inter_size = 262144;
  EXPECT_EQ(refusal(config), "a product of 524288 rows, more than 524272");
}
