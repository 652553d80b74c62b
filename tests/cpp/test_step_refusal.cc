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

TEST(a_norm_that_is_wider_than_the_ring) {
  EXPECT_EQ(refusal(with_heads_of_64(small_opt(), 18440)),
            "a layer norm of 18440 columns, more than 18432");
  EXPECT_EQ(refusal(with_heads_of_64(small_llama(), 36872)),
            "an RMS norm of 36872 columns, more than 36864");
  EXPECT(refusal(with_heads_of_64(small_opt(), 18432)).find("norm") == std::string::npos);
  EXPECT(refusal(with_heads_of_64(small_llama(), 36864)).find("norm") == std::string::npos);
}
