#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "flexq_kernels/pack.h"
#include "ft/weights/model_weights.h"
#include "ft/weights/synthetic_source.h"
#include "tests/cpp/check.h"
#include "tests/cpp/folder_fixture.h"

using namespace flexq_test;

namespace {

ModelWeights load(const ModelFolder& folder, int rank = 0) {
  LoadOptions options;
  options.dtype = folder.dtype;
  options.scheme = folder.scheme;
  options.rank = rank;
  options.synthetic = true;
  return load_weights(folder, options);
}

// A model whose sizes are not the smallest, so that its numbers have a variance.
ModelConfig wider(ModelConfig config) {
  config.hidden_size = 256;
  config.num_heads = 4;
  config.num_kv_heads = config.architecture == Architecture::kOpt ? 4 : 2;
  config.head_dim = 64;
  config.inter_size = 512;
  return config;
}

ModelFolder shape(const ModelConfig& config, Scheme scheme, DataType dtype, int tp) {
  return make_folder("no/such/folder", config, scheme, dtype, tp);
}

float value_at(const LinearWeight& w, int64_t i) {
  return static_cast<const float*>(w.codes.data())[i];
}

// What is in a panel of rows that pad the weight.
bool pads_with_zeros(const LinearWeight& w) {
  bool zeros = true;
  for (int64_t row = w.n; row % 16 != 0; ++row) {
    for (int64_t k = 0; k < w.k; ++k) {
      zeros = zeros && value_at(w, (row / 16 * w.k + k) * 16 + row % 16) == 0.0f;
    }
  }
  return zeros;
}

double deviation(const float* values, int64_t count) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(values[i]) * values[i];
  return std::sqrt(sum / static_cast<double>(count));
}

std::string ini(const char* more = "") {
  ModelFolder folder = shape(small_llama(), Scheme::kFloat, DataType::kFp32, 1);
  return ini_text(folder) + more;
}

}  // namespace

TEST(outputs_of_synthetic_linears_have_the_variance_of_their_inputs) {
  for (const int tp : {1, 2}) {
    const ModelFolder folder = shape(wider(small_llama()), Scheme::kFloat, DataType::kFp32, tp);
    const ModelWeights weights = load(folder);
    const LayerWeights& layer = weights.layers[1];
    const auto spread = [](const LinearWeight& w) {
      return deviation(static_cast<const float*>(w.codes.data()), w.n * w.k);
    };
    EXPECT(std::fabs(spread(layer.qkv) * std::sqrt(256.0) - 1.0) < 0.02);
    EXPECT(std::fabs(spread(layer.down) * std::sqrt(512.0) - 1.0) < 0.02);  // of all ranks
    const auto* table = static_cast<const float*>(weights.embedding.data());
    EXPECT(std::fabs(deviation(table, 37 * 256) - 1.0) < 0.02);
    const auto* norm = static_cast<const float*>(layer.post_norm.weight.data());
    EXPECT(norm[0] > 0.94f && norm[0] < 1.06f && norm[0] != norm[1]);
  }
}

TEST(synthetic_int8_codes_use_their_whole_range) {
  for (const Scheme scheme : {Scheme::kW8A16, Scheme::kW8A8}) {
    const ModelWeights weights = load(shape(wider(small_llama()), scheme, DataType::kFp16, 1));
    const LinearWeight& up = weights.layers[0].up;
    const auto* codes = static_cast<const int8_t*>(up.codes.data());
    int least = 0, most = 0;
    for (int64_t i = 0; i < up.n * up.k; ++i) {
      least = std::min<int>(least, codes[i]);
      most = std::max<int>(most, codes[i]);
    }
    EXPECT_EQ(least, -127);
    EXPECT_EQ(most, 127);
    const float scale = static_cast<const float*>(up.scales.data())[7];
    EXPECT(std::fabs(scale * 127.0f * std::sqrt(256.0f) / 1.7320508f - 1.0f) < 0.13f);
  }
}

TEST(synthetic_weights_are_the_same_again_and_differ_by_name_and_rank) {
  const ModelFolder folder = shape(small_llama(), Scheme::kFloat, DataType::kFp32, 2);
  const ModelWeights a = load(folder, 1);
  const ModelWeights b = load(folder, 1);
  const ModelWeights other = load(folder, 0);
  EXPECT_EQ(value_at(a.layers[1].up, 5), value_at(b.layers[1].up, 5));
  EXPECT(value_at(a.layers[1].up, 5) != value_at(a.layers[0].up, 5));
  EXPECT(value_at(a.layers[1].up, 5) != value_at(other.layers[1].up, 5));
  const auto* mine = static_cast<const float*>(a.embedding.data());
  const auto* theirs = static_cast<const float*>(other.embedding.data());
  EXPECT_EQ(mine[36 * 48 + 1], theirs[36 * 48 + 1]);
  EXPECT(pads_with_zeros(a.layers[1].up));
}

TEST(a_synthetic_opt_has_its_biases) {
  const ModelWeights weights = load(shape(small_opt(), Scheme::kFloat, DataType::kFp16, 1));
  EXPECT(weights.positional.defined());
  EXPECT(weights.layers[0].qkv.bias.defined() && weights.layers[1].down_bias.defined());
  EXPECT(weights.final_norm.bias.defined());
}

TEST(synthetic_int6_weights_have_the_variance_of_float_ones) {
  const ModelWeights weights = load(shape(wider(small_llama()), Scheme::kW6Ax, DataType::kFp16, 1));
  const LinearWeight& up = weights.layers[0].up;
  std::vector<int8_t> codes(static_cast<size_t>(up.n * up.k));
  flexq_kernels::unpack_int6(codes.data(), static_cast<const uint8_t*>(up.codes.data()), up.n,
                             up.k);
  const auto [least, most] = std::minmax_element(codes.begin(), codes.end());
  EXPECT_EQ(int{*least}, -32);
  EXPECT_EQ(int{*most}, 31);
  const auto* scales = static_cast<const Half*>(up.scales.data());
  std::vector<float> values(codes.size());
  for (int64_t row = 0; row < up.n; ++row) {
    for (int64_t k = 0; k < up.k; ++k) {
      const size_t i = static_cast<size_t>(row * up.k + k);
      values[i] = static_cast<float>(codes[i]) * to_float(scales[k / 128 * up.n + row]);
    }
  }
  const double spread = deviation(values.data(), up.n * up.k);
  EXPECT(std::fabs(spread * std::sqrt(256.0) - 1.0) < 0.02);
}

TEST(a_shape_is_a_folder_without_files) {
  const TempFolder temp;
  const std::string path = temp.file("small.ini");
  write_text(path, ini("int8_mode = 0\ntensor_para_size = 1\n"));
  const ModelFolder folder = shape_folder(path, Scheme::kW8A8, DataType::kBf16, 2);
  EXPECT_EQ(folder.tp, 2);
  EXPECT(folder.scheme == Scheme::kW8A8 && folder.dtype == DataType::kBf16);
  EXPECT_EQ(folder.config.hidden_size, 48);
  EXPECT_EQ(folder.shards.inter[1][0], 20);
  EXPECT_EQ(load(folder, 1).layers.size(), size_t{2});
  EXPECT_THROW(shape_folder(path, Scheme::kFloat, DataType::kFp16, 3), Error,
               "cannot be split on 3 ranks");
  EXPECT_THROW(shape_folder(temp.file("none.ini"), Scheme::kFloat, DataType::kFp16, 1), Error,
               "none.ini");
  write_text(path, ini("colour = red\n"));
  EXPECT_THROW(shape_folder(path, Scheme::kFloat, DataType::kFp16, 1), Error, "colour");
}
