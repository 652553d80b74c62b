#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "flexq_kernels/pack.h"
#include "ft/core/error.h"
#include "ft/weights/model_weights.h"
#include "tests/cpp/check.h"
#include "tests/cpp/folder_fixture.h"

using namespace flexq_test;

namespace {

struct Written {
  TempFolder temp;
  ModelFolder folder;

  Written(const ModelConfig& config, Scheme scheme, DataType dtype, int tp,
          HeadFormat head = HeadFormat::kFloat)
      : folder(make_folder(temp.path(), config, scheme, dtype, tp)) {
    folder.lm_head = head;
    write_weight_files(&folder);
  }

  ModelWeights load(DataType dtype, Scheme scheme, int rank) const {
    LoadOptions options;
    options.dtype = dtype;
    options.scheme = scheme;
    options.lm_head = folder.lm_head;
    options.rank = rank;
    return load_weights(folder, options);
  }
};

// Element (row, k) of a float weight in the panel layout, by its definition.
float panel_value(const LinearWeight& w, int64_t row, int64_t k) {
  const int64_t i = (row / 16 * w.k + k) * 16 + row % 16;
  return dispatch_float(w.format.storage, [&](auto tag) {
    using T = decltype(tag);
    return to_float(static_cast<const T*>(w.codes.data())[i]);
  });
}

int int8_code(const LinearWeight& w, int64_t row, int64_t k) {
  const auto* codes = static_cast<const int8_t*>(w.codes.data());
  if (w.format.layout == Layout::kPanel) return codes[(row / 16 * w.k + k) * 16 + row % 16];
  const int64_t pairs = (w.k + 1) / 2;
  return codes[((row / 16 * pairs + k / 2) * 16 + row % 16) * 2 + k % 2];
}

float float_at(const Buffer& buffer, int64_t i) {
  return static_cast<const float*>(buffer.data())[i];
}

// Row r of FT's [K, N] file.
float file_weight(const std::string& name, int64_t n, int64_t row, int64_t k) {
  return file_value(name, k * n + row);
}

// The weight that row `row` of gate_up comes from.
std::string gate_up_file(int64_t row, int64_t inter, int rank, const char* suffix) {
  return std::string("model.layers.1.mlp.") + (row < inter ? "gate_proj" : "up_proj") + suffix +
         "." + std::to_string(rank) + ".bin";
}

}  // namespace

TEST(float_files_of_every_type_land_in_panels_of_every_type) {
  for (const DataType from : {DataType::kFp32, DataType::kFp16, DataType::kBf16}) {
    const Written written(small_llama(), Scheme::kFloat, from, 2);
    for (const DataType to : {DataType::kFp32, DataType::kFp16, DataType::kBf16}) {
      const ModelWeights weights = written.load(to, Scheme::kFloat, 1);
      const LinearWeight& qkv = weights.layers[1].qkv;
      EXPECT_EQ(qkv.name, "layers.1.qkv");
      EXPECT_EQ(qkv.n, 48);  // 2 + 2 * 1 heads of 12
      EXPECT_EQ(qkv.k, 48);
      EXPECT_EQ(qkv.format.storage, to);
      bool equal = true;
      for (int64_t row = 0; row < qkv.n; ++row) {
        for (int64_t k = 0; k < qkv.k; ++k) {
          equal = equal && panel_value(qkv, row, k) ==
                               file_weight("model.layers.1.attention.query_key_value.weight.1.bin",
                                           48, row, k);
        }
      }
      EXPECT(equal);
    }
  }
}

TEST(gate_rows_come_before_up_rows_though_inter_is_no_multiple_of_16) {
  const Written written(small_llama(), Scheme::kFloat, DataType::kFp16, 2);
  const ModelWeights weights = written.load(DataType::kFp32, Scheme::kFloat, 1);
  const LinearWeight& up = weights.layers[1].up;
  EXPECT_EQ(up.name, "layers.1.gate_up");
  EXPECT_EQ(up.n, 40);
  bool equal = true;
  for (int64_t row = 0; row < up.n; ++row) {
    for (int64_t k = 0; k < up.k; ++k) {
      equal = equal && panel_value(up, row, k) ==
                           file_weight(gate_up_file(row, 20, 1, ".weight"), 20, row % 20, k);
    }
  }
  EXPECT(equal);
  for (int64_t row = up.n; row < 48; ++row) EXPECT_EQ(panel_value(up, row, 3), 0.0f);
}

TEST(the_head_is_cut_by_the_vocabulary_and_may_be_the_embedding) {
  for (const bool tied : {false, true}) {
    ModelConfig config = small_llama();
    config.tie_word_embeddings = tied;
    const Written written(config, Scheme::kFloat, DataType::kFp16, 2);
    const ModelWeights weights = written.load(DataType::kBf16, Scheme::kFloat, 1);
    EXPECT_EQ(weights.lm_head.n, 18);  // of 37
    const char* file = tied ? "model.wte.weight.bin" : "model.lm_head.weight.bin";
    for (int64_t row = 0; row < 18; ++row) {
      EXPECT_EQ(panel_value(weights.lm_head, row, 5), file_value(file, (19 + row) * 48 + 5));
    }
    EXPECT_EQ(weights.embedding.bytes(), size_t{37 * 48 * 2});
  }
}

TEST(a_quantised_head_is_the_ranks_rows_beside_a_float_embedding) {
  for (const bool tied : {false, true}) {
    ModelConfig config = small_llama();
    config.tie_word_embeddings = tied;
    const Written int8(config, Scheme::kFloat, DataType::kFp16, 2, HeadFormat::kW8);
    EXPECT_EQ(int8.folder.files.count("model.lm_head.weight.bin"), size_t{0});
    const ModelWeights weights = int8.load(DataType::kFp16, Scheme::kFloat, 1);
    const LinearWeight& head = weights.lm_head;
    EXPECT_EQ(head.name, "lm_head");
    EXPECT_EQ(head.n, 18);  // of 37
    EXPECT_EQ(head.k, 48);
    EXPECT_EQ(head.format.act_bits, 16);
    bool equal = true;
    for (int64_t row = 0; row < head.n; ++row) {
      equal = equal &&
              float_at(head.scales, row) ==
                  std::fabs(file_value("model.lm_head.weight.w8.scale.1.bin", row)) + 1.0f / 64.0f;
      for (int64_t k = 0; k < head.k; ++k) {
        const float value = file_value("model.lm_head.weight.w8.1.bin", row * head.k + k);
        equal = equal && int8_code(head, row, k) == static_cast<int>(64 * value);
      }
    }
    EXPECT(equal);
    EXPECT_EQ(panel_value(weights.layers[0].o, 3, 5),
              file_weight("model.layers.0.attention.dense.weight.1.bin", 48, 3, 5));
    EXPECT_EQ(weights.embedding.bytes(), size_t{37 * 48 * 2});
  }
}

TEST(a_head_of_six_bits_beside_layers_of_any_scheme) {
  for (const Scheme scheme : {Scheme::kFloat, Scheme::kW8A8, Scheme::kW6Ax}) {
    const Written written(small_llama(), scheme, DataType::kFp16, 1, HeadFormat::kW6);
    const ModelWeights weights = written.load(DataType::kFp16, scheme, 0);
    const LinearWeight& head = weights.lm_head;
    EXPECT(head.format.layout == Layout::kFrag16x128);
    EXPECT_EQ(head.format.act_bits, 16);
    EXPECT(weights.layers[0].qkv.format.scheme == scheme);
    std::vector<int8_t> codes(static_cast<size_t>(head.n * head.k));
    flexq_kernels::unpack_int6(codes.data(), static_cast<const uint8_t*>(head.codes.data()), head.n,
                               head.k);
    bool equal = head.n == 37;
    for (int64_t i = 0; i < head.n * head.k; ++i) {
      const float value = file_value("model.lm_head.weight.int6.0.bin", i);
      equal = equal && codes[static_cast<size_t>(i)] == static_cast<int>(64 * value);
    }
    EXPECT(equal);
  }
}

TEST(floats_that_become_w8_at_load_keep_the_heads_files) {
  const Written written(small_llama(), Scheme::kFloat, DataType::kFp16, 1, HeadFormat::kW8);
  const ModelWeights weights = written.load(DataType::kFp16, Scheme::kW8A16, 0);
  EXPECT_EQ(int8_code(weights.lm_head, 2, 7),
            static_cast<int>(64 * file_value("model.lm_head.weight.w8.0.bin", 2 * 48 + 7)));
  EXPECT(weights.layers[0].qkv.format.scheme == Scheme::kW8A16);
}

TEST(opt_has_biases_positions_and_norm_biases) {
  const Written written(small_opt(), Scheme::kFloat, DataType::kFp16, 2);
  const ModelWeights weights = written.load(DataType::kFp32, Scheme::kFloat, 1);
  const LayerWeights& layer = weights.layers[0];
  EXPECT_EQ(layer.up.name, "layers.0.fc1");
  EXPECT_EQ(layer.down.name, "layers.0.fc2");
  EXPECT_EQ(float_at(weights.positional, 50), file_value("model.wpe.bin", 50));
  EXPECT_EQ(float_at(layer.qkv.bias, 30),
            file_value("model.layers.0.attention.query_key_value.bias.1.bin", 30));
  EXPECT_EQ(float_at(layer.up.bias, 19),
            file_value("model.layers.0.mlp.dense_h_to_4h.bias.1.bin", 19));
  EXPECT(!layer.o.bias.defined() && !layer.down.bias.defined());
  EXPECT_EQ(float_at(layer.o_bias, 47), file_value("model.layers.0.attention.dense.bias.bin", 47));
  EXPECT_EQ(float_at(layer.down_bias, 1),
            file_value("model.layers.0.mlp.dense_4h_to_h.bias.bin", 1));
  EXPECT_EQ(float_at(layer.post_norm.bias, 7),
            file_value("model.layers.0.post_attention_layernorm.bias.bin", 7));
}

TEST(int8_files_land_in_panels_or_pairs_with_their_scales) {
  for (const Scheme scheme : {Scheme::kW8A16, Scheme::kW8A8}) {
    const Written written(small_llama(), scheme, DataType::kFp16, 2);
    const ModelWeights weights = written.load(DataType::kFp16, scheme, 1);
    const LinearWeight& up = weights.layers[1].up;
    EXPECT_EQ(up.format.act_bits, scheme == Scheme::kW8A8 ? 8 : 16);
    bool equal = true;
    for (int64_t row = 0; row < up.n; ++row) {
      const std::string file = gate_up_file(row, 20, 1, ".weight.w8");
      const std::string scale = gate_up_file(row, 20, 1, ".weight.w8.scale");
      equal = equal &&
              float_at(up.scales, row) == std::fabs(file_value(scale, row % 20)) + 1.0f / 64.0f;
      for (int64_t k = 0; k < up.k; ++k) {
        equal = equal && int8_code(up, row, k) ==
                             static_cast<int>(64 * file_value(file, row % 20 * up.k + k));
      }
    }
    EXPECT(equal);
    EXPECT_EQ(weights.layers[1].down.k, 20);
  }
}

TEST(int6_halves_of_gate_up_meet_inside_a_tile) {
  for (const int64_t inter : {40, 48}) {  // 48: whole tiles are put together
    ModelConfig config = small_llama();
    config.inter_size = inter;
    const Written written(config, Scheme::kW6Ax, DataType::kFp16, 1);
    const ModelWeights weights = written.load(DataType::kFp16, Scheme::kW6Ax, 0);
    const LinearWeight& up = weights.layers[1].up;
    EXPECT(up.format.layout == Layout::kFrag16x128);
    EXPECT_EQ(up.format.act_bits, 6);
    EXPECT_EQ(weights.layers[1].down.format.act_bits, 8);
    std::vector<int8_t> codes(static_cast<size_t>(up.n * up.k));
    flexq_kernels::unpack_int6(codes.data(), static_cast<const uint8_t*>(up.codes.data()), up.n,
                               up.k);
    bool equal = up.n == 2 * inter;
    for (int64_t row = 0; row < up.n; ++row) {
      const std::string file = gate_up_file(row, inter, 0, ".weight.int6");
      const std::string scale = gate_up_file(row, inter, 0, ".weight.int6.scale");
      const Half s = static_cast<const Half*>(up.scales.data())[row];
      equal = equal && to_float(s) == std::fabs(file_value(scale, row % inter)) + 1.0f / 64.0f;
      for (int64_t k = 0; k < up.k; ++k) {
        equal = equal && codes[static_cast<size_t>(row * up.k + k)] ==
                             static_cast<int>(64 * file_value(file, row % inter * up.k + k));
      }
    }
    EXPECT(equal);
  }
}

TEST(int8_made_at_load_is_that_of_the_whole_matrix_on_every_rank) {
  const Written written(small_llama(), Scheme::kFloat, DataType::kFp16, 2);
  const ModelWeights ranks[] = {written.load(DataType::kFp16, Scheme::kW8A16, 0),
                                written.load(DataType::kFp16, Scheme::kW8A8, 1)};
  const int64_t part = 20;  // k of a rank's down
  for (int64_t row = 0; row < 48; ++row) {
    float largest = 0.0f;
    std::vector<float> w(static_cast<size_t>(2 * part));
    for (int rank = 0; rank < 2; ++rank) {
      const std::string file =
          "model.layers.0.mlp.down_proj.weight." + std::to_string(rank) + ".bin";
      for (int64_t k = 0; k < part; ++k) {
        const float value = file_weight(file, 48, row, k);
        w[static_cast<size_t>(rank * part + k)] = value;
        largest = std::max(largest, std::fabs(value));
      }
    }
    const float scale = largest / 127.0f;
    for (int rank = 0; rank < 2; ++rank) {
      const LinearWeight& down = ranks[rank].layers[0].down;
      EXPECT_EQ(float_at(down.scales, row), scale);
      for (int64_t k = 0; k < part; ++k) {
        const float value = w[static_cast<size_t>(rank * part + k)];
        EXPECT_EQ(int8_code(down, row, k), static_cast<int>(std::nearbyint(value / scale)));
      }
    }
  }
}

TEST(all_faulty_files_are_reported_at_once_with_their_bytes) {
  const Written written(small_llama(), Scheme::kFloat, DataType::kFp16, 1);
  const std::string dense = written.temp.file("model.layers.1.attention.dense.weight.0.bin");
  write_bytes(dense, "abc", 3);
  std::remove(written.temp.file("model.layers.0.mlp.up_proj.weight.0.bin").c_str());
  const std::string norm = written.temp.file("model.final_layernorm.weight.bin");
  write_text(norm, read_bytes(norm) + "x");
  const std::string wte = written.temp.file("model.wte.weight.bin");
  std::remove(wte.c_str());
  EXPECT_EQ(::symlink("/dev/zero", wte.c_str()), 0);
  try {
    written.load(DataType::kFp16, Scheme::kFloat, 0);
    EXPECT(false);
  } catch (const Error& error) {
    const std::string what = error.what();
    EXPECT(error.kind() == ErrorKind::kWeight);
    EXPECT(what.find("4 of 17 weight files in ") == 0);
    EXPECT(what.find("do not match manifest.json; nothing was loaded") != std::string::npos);
    EXPECT_EQ(error.cause(),
              "model.wte.weight.bin is not a regular file; "
              "model.layers.0.mlp.up_proj.weight.0.bin is missing; "
              "model.layers.1.attention.dense.weight.0.bin holds 3 bytes, expected 4,608; "
              "and 1 more");
  }
}

TEST(a_scale_that_is_not_finite_names_file_and_index) {
  const Written int8(small_llama(), Scheme::kW8A16, DataType::kFp16, 1);
  std::vector<float> scales(48, 0.5f);
  scales[7] = NAN;
  const char* name = "model.layers.0.attention.dense.weight.w8.scale.0.bin";
  write_bytes(int8.temp.file(name), scales.data(), scales.size() * sizeof(float));
  EXPECT_THROW(int8.load(DataType::kFp16, Scheme::kW8A16, 0), Error, "scale.0.bin: scale 7 is nan");

  const Written int6(small_llama(), Scheme::kW6Ax, DataType::kFp16, 1);
  std::vector<Half> halves(48, Half{0x3c00});
  halves[11] = Half{0x7c00};
  write_bytes(int6.temp.file("model.layers.0.attention.dense.weight.int6.scale.0.bin"),
              halves.data(), halves.size() * sizeof(Half));
  EXPECT_THROW(int6.load(DataType::kFp16, Scheme::kW6Ax, 0), Error, "scale 11 is inf");
}

TEST(a_nan_met_while_quantising_names_file_and_place) {
  const Written written(small_llama(), Scheme::kFloat, DataType::kFp32, 2);
  const char* name = "model.layers.0.attention.dense.weight.1.bin";  // [24, 48]
  std::string bytes = read_bytes(written.temp.file(name));
  const float nan = NAN;
  std::memcpy(&bytes[(5 * 48 + 9) * sizeof(float)], &nan, sizeof(nan));
  write_text(written.temp.file(name), bytes);
  for (const int rank : {0, 1}) {
    EXPECT_THROW(written.load(DataType::kFp16, Scheme::kW8A16, rank), Error,
                 "attention.dense.weight.1.bin: the weight at [5, 9] is nan");
  }
}

TEST(a_scheme_that_the_folder_does_not_hold_is_the_users_fault) {
  const Written int6(small_llama(), Scheme::kW6Ax, DataType::kFp16, 1);
  const Written floats(small_llama(), Scheme::kFloat, DataType::kFp16, 1);
  EXPECT_THROW(int6.load(DataType::kFp16, Scheme::kW8A8, 0), Error, "scheme w8a8 (int8_mode 2)");
  EXPECT_THROW(int6.load(DataType::kFp16, Scheme::kFloat, 0), Error, "holds w6ax (int8_mode 5)");
  EXPECT_THROW(floats.load(DataType::kFp16, Scheme::kW6Ax, 0), Error, "holds fp16 (int8_mode 0)");
}

TEST(a_sum_too_long_for_int32_is_refused_at_load) {
  ModelConfig config = small_llama();
  config.num_layers = 1;
  config.hidden_size = 8;
  config.inter_size = 65536 + 8;
  const Written written(config, Scheme::kFloat, DataType::kFp16, 1);
  EXPECT_THROW(written.load(DataType::kFp16, Scheme::kW8A8, 0), Error,
               "layers.0.down has 65544 inputs a rank, and w8a8 takes 65536");
}

TEST(loading_gives_back_all_memory_but_the_weights) {
  const Written written(small_llama(), Scheme::kFloat, DataType::kFp16, 2);
  const auto before = memory_in_use();
  {
    const ModelWeights weights = written.load(DataType::kFp32, Scheme::kW8A16, 0);
    const auto during = memory_in_use();
    EXPECT(during[static_cast<int>(MemoryKind::kWeights)] >
           before[static_cast<int>(MemoryKind::kWeights)]);
    EXPECT_EQ(during[static_cast<int>(MemoryKind::kWorkspace)],
              before[static_cast<int>(MemoryKind::kWorkspace)]);
  }
  EXPECT(memory_in_use() == before);
}

TEST(progress_ends_at_the_bytes_that_were_announced) {
  for (const bool tied : {false, true}) {
    ModelConfig config = small_llama();
    config.tie_word_embeddings = tied;
    for (const Scheme scheme : {Scheme::kFloat, Scheme::kW8A8}) {
      for (const HeadFormat head : {HeadFormat::kFloat, HeadFormat::kW6}) {
        const Written written(config, Scheme::kFloat, DataType::kFp16, 2, head);
        std::vector<std::array<int64_t, 2>> seen;
        LoadOptions options;
        options.scheme = scheme;
        options.lm_head = head;
        options.rank = 1;
        options.progress = [&](int64_t done, int64_t total) { seen.push_back({done, total}); };
        load_weights(written.folder, options);
        EXPECT(seen.size() > 10);
        EXPECT_EQ(seen.back()[0], seen.back()[1]);
        EXPECT(seen[seen.size() - 2][0] < seen.back()[1]);
        EXPECT(std::is_sorted(seen.begin(), seen.end()));
      }
    }
  }
}

TEST(what_a_progress_callback_throws_ends_the_load) {
  const Written written(small_llama(), Scheme::kFloat, DataType::kFp16, 1);
  LoadOptions options;
  options.progress = [](int64_t, int64_t) { throw std::runtime_error("stop"); };
  EXPECT_THROW(load_weights(written.folder, options), std::runtime_error, "stop");
}

TEST(a_gpu_does_not_take_fp32) {
  const Written int6(small_llama(), Scheme::kW6Ax, DataType::kFp16, 1);
  LoadOptions options;
  options.device = Device::kCuda;
  options.dtype = DataType::kFp32;
  EXPECT_THROW(load_weights(int6.folder, options), Error, "fp32 was asked for");
}
