#include "ft/weights/model_folder.h"

#include <cstdio>
#include <string>

#include "ft/core/error.h"
#include "ft/weights/manifest.h"
#include "ft/weights/policy.h"
#include "tests/cpp/check.h"
#include "tests/cpp/folder_fixture.h"
#include "tests/cpp/fuzz.h"

using namespace flexq_test;

namespace {

struct WrittenFolder {
  TempFolder temp;
  ModelFolder folder;

  WrittenFolder(const ModelConfig& config, Scheme scheme, int tp, bool manifest = true)
      : folder(make_folder(temp.path(), config, scheme, DataType::kFp16, tp)) {
    if (scheme == Scheme::kW6Ax && tp > 1) {
      folder.cut_groups = {"attention.dense",
                           config.gated_ffn ? "mlp.down_proj" : "mlp.dense_4h_to_h"};
    }
    folder.has_manifest = manifest;
    write_weight_files(&folder);
    write_text(temp.file("config.ini"), ini_text(folder));
    if (manifest) write_manifest();
  }

  void write_manifest() { write_text(temp.file("manifest.json"), manifest_text(folder)); }
  ModelFolder open() const { return open_model_folder(temp.path()); }

  // Replaces a text in one of the two files.
  void edit(const char* file, const std::string& from, const std::string& to) {
    std::string text = read_bytes(temp.file(file));
    const size_t at = text.find(from);
    EXPECT(at != std::string::npos);
    write_text(temp.file(file), text.replace(at, from.size(), to));
  }
};

}  // namespace

TEST(a_folder_reads_back_as_it_was_written) {
  for (const Scheme scheme : {Scheme::kFloat, Scheme::kW8A16, Scheme::kW8A8, Scheme::kW6Ax}) {
    for (const int tp : {1, 2}) {
      WrittenFolder written(small_llama(), scheme, tp);
      if (scheme != Scheme::kFloat) {
        written.edit("config.ini", "[llama]",
                     "[llama]\nint8_mode = " + std::to_string(int8_mode(scheme)));
      }
      const ModelFolder folder = written.open();
      EXPECT(folder.has_manifest);
      EXPECT_EQ(folder.scheme, scheme);
      EXPECT_EQ(folder.tp, tp);
      EXPECT_EQ(folder.config.num_kv_heads, 2);
      EXPECT_EQ(folder.config.eos_ids.size(), size_t{2});
      EXPECT_EQ(folder.files.size(), written.folder.files.size());
      EXPECT(folder.shards.inter == written.folder.shards.inter);
    }
  }
}

TEST(an_ft_folder_without_manifest_is_read_by_its_ini) {
  const WrittenFolder llama(small_llama(), Scheme::kFloat, 2, false);
  const ModelFolder folder = llama.open();
  EXPECT(!folder.has_manifest);
  EXPECT_EQ(folder.tp, 2);  // counted from the files
  EXPECT_EQ(folder.dtype, DataType::kFp16);
  EXPECT_EQ(folder.config.hidden_size, 48);
  EXPECT_EQ(folder.config.rope->theta, 10000.0);
  EXPECT(!folder.config.tie_word_embeddings);

  WrittenFolder opt(small_opt(), Scheme::kFloat, 1, false);
  const ModelFolder tied = opt.open();
  EXPECT(tied.config.architecture == Architecture::kOpt);
  EXPECT(tied.config.tie_word_embeddings && tied.config.qkv_bias);
  EXPECT(tied.config.activation == Activation::kRelu);
  write_text(opt.temp.file("model.lm_head.weight.bin"), "x");
  EXPECT(!opt.open().config.tie_word_embeddings);
}

TEST(comments_after_values_and_both_layer_keys_are_ft_habits) {
  WrittenFolder written(small_opt(), Scheme::kFloat, 1, false);
  written.edit("config.ini", "num_layer = 2", "decoder_layers = 2 # layers");
  written.edit("config.ini", "weight_data_type = fp16", "weight_data_type = FP16 # of files");
  EXPECT_EQ(written.open().config.num_layers, 2);
  written.edit("config.ini", "decoder_layers", "num_layer = 3\ndecoder_layers");
  EXPECT_THROW(written.open(), Error, "num_layer contradicts another key that says 2");
}

TEST(what_ft_writes_for_models_that_are_not_supported_is_refused_by_name) {
  const auto opened_with = [](const char* key, const char* value) {
    WrittenFolder written(small_opt(), Scheme::kFloat, 1, false);
    written.edit("config.ini", "layernorm_type = pre_layernorm\n", "");
    written.edit("config.ini", "activation_type = Relu\n", std::string(key) + " = " + value + "\n");
    written.open();
  };
  EXPECT_THROW(opened_with("layernorm_type", "post_layernorm"), Error, "post-LN");
  EXPECT_THROW(opened_with("has_post_decoder_layernorm", "0"), Error, "final norm");
  EXPECT_THROW(opened_with("activation_type", "Swish"), Error, "supported are Relu and Gelu");
  EXPECT_THROW(opened_with("layernorm_typ", "x"), Error, "did you mean 'layernorm_type'?");
  EXPECT_THROW(opened_with("int8_mode", "4"), Error, "int8_mode is 4");
  opened_with("int8", "False");
}

TEST(quantised_modes_without_manifest_are_refused) {
  WrittenFolder written(small_llama(), Scheme::kFloat, 1, false);
  written.edit("config.ini", "[llama]", "[llama]\nint8_mode = 5");
  EXPECT_THROW(written.open(), Error, "says int8_mode = 5, and there is no manifest.json");
  written.edit("config.ini", "int8_mode = 5", "int8_mode = 2");
  EXPECT_THROW(written.open(), Error, "says int8_mode = 2");
  write_text(written.temp.file("model.layers.0.attention.query_key_value.weight.int8.0.bin"), "x");
  EXPECT_THROW(written.open(), Error, "FasterTransformer's own int8 files");
}

TEST(ini_and_manifest_that_disagree_name_the_key_and_both_values) {
  const char* cases[][3] = {
      {"head_num = 4", "head_num = 8", "disagree on head_num: 8 and 4"},
      {"num_layer = 2", "num_layer = 3", "disagree on num_layer: 3 and 2"},
      {"end_id = 2", "end_id = 3", "disagree on end_id: 3 and 2"},
      {"layernorm_eps = 1e-05", "layernorm_eps = 1e-06",
       "disagree on layernorm_eps: 1e-06 and 1e-05"},
      {"= fp16", "= fp32", "disagree on weight_data_type: fp32 and fp16"},
      {"kv_head_num = 2", "rope_theta = 5e5", "disagree on rope_theta: 500000 and 10000"},
      {"kv_head_num = 2", "int8_mode = 5", "disagree on int8_mode: 5 and 0"},
      {"kv_head_num = 2", "tensor_para_size = 2", "disagree on tensor_para_size: 2 and 1"},
      {"kv_head_num = 2", "rotary_embedding = 8\nsize_per_hea = 1", "unknown key 'size_per_hea'"},
      {"[llama]", "[gpt]", "disagree on architecture: opt and llama"},
  };
  for (const auto& [from, to, message] : cases) {
    WrittenFolder written(small_llama(), Scheme::kFloat, 1);
    written.edit("config.ini", from, to);
    EXPECT_THROW(written.open(), Error, message);
  }
}

TEST(a_folder_says_how_its_head_is_stored) {
  for (const Scheme scheme : {Scheme::kFloat, Scheme::kW6Ax}) {
    for (const HeadFormat head : {HeadFormat::kFloat, HeadFormat::kW8, HeadFormat::kW6}) {
      const TempFolder temp;
      ModelFolder folder = make_folder(temp.path(), small_opt(), scheme, DataType::kFp16, 1);
      folder.lm_head = head;
      write_weight_files(&folder);
      write_text(temp.file("manifest.json"), manifest_text(folder));
      EXPECT_EQ(open_model_folder(temp.path()).lm_head, head);
    }
  }
}

TEST(a_manifest_is_refused_where_it_is_wrong) {
  const char* cases[][3] = {
      {"manifest/1", "manifest/2", "schema is 'flexq-ft/manifest/2', this version reads"},
      {"\"num_layers\": 2", "\"num_layers\": 9000000000000000000",
       "model.num_layers is 9000000000"},
      {"\"num_layers\": 2", "\"num_layers\": 1e99", "model.num_layers must be an integer"},
      {"\"hidden_size\": 48", "\"hidden_size\": 1048577", "model.hidden_size is 1048577"},
      {"\"hidden_size\": 48", "\"hidden_size\": 1048576", "the model needs [37, 1048576]"},
      {"\"vocab_size\": 37", "\"vocab_size\": -1", "model.vocab_size is -1"},
      {"\"num_kv_heads\": 2", "\"num_kv_heads\": 3", "not a multiple of num_kv_heads 3"},
      {"\"max_positions\"", "\"max_position\"", "model.max_positions is missing"},
      {"\"rope\": {", "\"rope\": {\"thta\": 1, ", "model.rope.thta is an unknown key"},
      {"\"rope\": {", "\"norm_ep\": 1, \"rope\": {", "model.norm_ep is an unknown key"},
      {"\"norm\": \"rms\"", "\"norm\": \"layer\"", "a llama model has RMS norms"},
      {"\"eos_ids\": [2, 5]", "\"eos_ids\": [2, 37]", "model.eos_ids[1] is 37"},
      {"\"size\": 1", "\"size\": 1000000", "tensor_parallel.size is 1000000"},
      {"\"size\": 1", "\"size\": 2", "tensor_parallel.heads has 1 ranges for 2 ranks"},
      {"\"heads\": [[0, 4]]", "\"heads\": [[0, 3]]", "tensor_parallel.heads is [[0,3]]"},
      {"\"inter\": [[0, 40]]", "\"inter\": [[0, 39]]", "tensor_parallel.inter is [[0,39]]"},
      {"\"inter\": [[0, 40]]", "\"inter\": [[40, 40]]", "tensor_parallel.inter[0] is empty"},
      {"\"model.wte.weight.bin\"", "\"../model.wte.weight.bin\"", "points out of its folder"},
      {"\"model.wte.weight.bin\"", "\"/etc/passwd.bin\"", "points out of its folder"},
      {"\"model.wte.weight.bin\"", "\"model.wte.bim\"", "is not the name of a .bin file"},
      {"\"model.wte.weight.bin\"", "\"model.xte.weight.bin\"", "files has no model.wte.weight.bin"},
      {"\"bytes\": 96", "\"bytes\": 95", "95 bytes; the model needs [48] fp16 row_major, 96 bytes"},
      {"\"shape\": [48]", "\"shape\": [4611686018427387904, 8]", "is 4611686018427387904"},
      {"\"quantization\": null", "\"quantization\": {}", "quantization.lm_head is missing"},
      {"\"quantization\": null", "\"quantization\": {\"lm_head\": \"fp16\"}",
       "quantization.lm_head"},
      {"\"quantization\": null", "\"quantization\": {\"lm_head\": \"w8\", \"group_size\": 0}",
       "quantization.group_size is an unknown key"},
      {"\"quantization\": null", "\"quantization\": {\"lm_head\": \"w8\"}",
       "files has no model.lm_head.weight.w8.0.bin"},
      {"\"policy\": null", "\"policy\": {}", "policy is given for scheme fp16"},
      {"\"scheme\": \"fp16\"", "\"scheme\": \"w6ax\"", "policy is null for scheme w6ax"},
      {"\"tool_version\"", "\"tool_versoin\": \"\", \"tool_version\"",
       "tool_versoin is an unknown"},
  };
  for (const auto& [from, to, message] : cases) {
    WrittenFolder written(small_llama(), Scheme::kFloat, 1);
    written.edit("manifest.json", from, to);
    EXPECT_THROW(written.open(), Error, message);
  }
}

TEST(smoothing_is_read_and_refused_where_it_is_wrong) {
  const std::string plain = "\"smoothing\": null";
  const std::string smoothed =
      "\"smoothing\": {\"method\": \"smoothquant\", \"alpha\": 0.5, \"alphas\": null, "
      "\"calibration\": {\"text_sha256\": \"00\", \"sequences\": 128, \"length\": 512}, "
      "\"tokens\": 9, "
      "\"factors\": {\"bytes\": 96, \"xxh3_128\": \"00\"}}";
  const char* cases[][3] = {
      {"0.5", "1", nullptr},
      {"0.5", "\"search\"", nullptr},
      {"\"alphas\": null", "\"alphas\": {\"layers.0.qkv\": null}", nullptr},
      {"smoothquant", "smoothness", "quantization.smoothing.method is 'smoothness'"},
      {"0.5", "1.5", "quantization.smoothing.alpha is 1.5, allowed are 0 to 1, and 'search'"},
      {"0.5", "\"find\"", "quantization.smoothing.alpha is 'find'"},
      {"\"alphas\": null", "\"alphas\": []", "quantization.smoothing.alphas must be an object"},
      {"\"tokens\": 9", "\"tokens\": 0", "quantization.smoothing.tokens is 0"},
      {"\"length\": 512", "\"length\": 0", "quantization.smoothing.calibration.length is 0"},
      {"\"bytes\": 96, ", "", "quantization.smoothing.factors.bytes is missing"},
      {"\"tokens\"", "\"token\": 1, \"tokens\"", "quantization.smoothing.token is an unknown"},
  };
  for (const auto& [from, to, message] : cases) {
    WrittenFolder written(small_llama(), Scheme::kW8A8, 1);
    written.edit("manifest.json", plain, smoothed);
    written.edit("manifest.json", from, to);
    if (message == nullptr) {
      EXPECT_EQ(static_cast<int>(written.open().scheme), static_cast<int>(Scheme::kW8A8));
    } else {
      EXPECT_THROW(written.open(), Error, message);
    }
  }
}

TEST(static_activation_scales_are_of_w8a8_and_have_files_of_their_own) {
  const std::string plain = "\"row_map\": \"natural\"";
  const std::string with = plain + ", \"activation_scales\": \"static\"";
  WrittenFolder written(small_llama(), Scheme::kW8A8, 1);
  EXPECT(!written.open().static_act_scales);
  written.edit("manifest.json", plain, with);
  EXPECT_THROW(written.open(), Error,
               "files has no model.layers.0.attention.query_key_value.weight.w8.act_scale.0.bin");
  WrittenFolder other(small_llama(), Scheme::kW8A16, 1);
  other.edit("manifest.json", plain, with);
  EXPECT_THROW(other.open(), Error, "quantization.activation_scales is an unknown key");
}

TEST(int6_shards_may_be_uneven_but_must_meet_on_groups) {
  ModelConfig config = small_llama();
  config.hidden_size = 256;
  config.head_dim = 64;
  config.inter_size = 384;
  TempFolder temp;
  const auto opened = [&](std::vector<std::array<int64_t, 2>> inter) {
    ModelFolder folder = make_folder(temp.path(), config, Scheme::kW6Ax, DataType::kFp16, 2);
    folder.shards.inter = std::move(inter);
    write_weight_files(&folder);
    write_text(temp.file("manifest.json"), manifest_text(folder));
    return open_model_folder(temp.path());
  };
  EXPECT_EQ(opened({{0, 256}, {256, 384}}).shards.inter[0][1], 256);
  EXPECT_THROW(opened({{0, 192}, {192, 384}}), Error, "is cut at 192, inside a group of 128");
  EXPECT_THROW(opened({{0, 128}, {256, 384}}), Error, "a gap or an overlap at 256");
  EXPECT_THROW(opened({{0, 256}, {128, 384}}), Error, "a gap or an overlap at 128");
  EXPECT_THROW(opened({{0, 128}, {128, 256}}), Error, "ends at 256, and inter_size is 384");
}

TEST(heads_that_cut_a_group_must_be_recorded) {
  WrittenFolder written(small_llama(), Scheme::kW6Ax, 2);
  EXPECT_EQ(written.open().cut_groups.size(), size_t{2});
  written.edit("manifest.json", "\"attention.dense\", ", "");
  EXPECT_THROW(written.open(), Error, "the shards of attention.dense are cut at 24");
}

TEST(fewer_kv_heads_than_ranks_are_replicated) {
  ModelConfig config = small_llama();
  const ShardRanges shards = even_shards(config, 4);
  EXPECT_EQ(shards.kv_heads[1][0], 0);
  EXPECT_EQ(shards.kv_heads[2][0], 1);
  EXPECT_EQ(shards.kv_heads[3][1], 2);
  EXPECT_THROW(even_shards(config, 3), Error, "num_heads 4 cannot be split on 3 ranks");
  config.num_heads = 6;
  config.num_kv_heads = 2;
  EXPECT_THROW(even_shards(config, 3), Error, "num_kv_heads 2 cannot be split on 3 ranks");
}

TEST(a_path_without_a_folder_is_the_users_fault) {
  TempFolder temp;
  try {
    open_model_folder(temp.file("absent"));
    EXPECT(false);
  } catch (const Error& error) {
    EXPECT(error.kind() == ErrorKind::kConfig);
  }
  EXPECT_THROW(open_model_folder(temp.path()), Error, "neither manifest.json nor config.ini");
}

TEST(policies_match_rule_after_rule) {
  const ModelConfig config = small_llama();
  const auto read = [](const std::string& text) {
    const JsonDocument document = parse_json(text, "policy", ErrorKind::kConfig);
    return read_policy(document, document.root);
  };
  const std::string head = R"({"schema": "flexq-ft/policy/1", "default": 6, "rules": [)";
  const Policy policy = read(head + R"({"layers": "*", "linear": "down", "act_bits": 8},)" +
                             R"({"layers": "1-3", "linear": "down", "act_bits": 16},)" +
                             R"({"layers": [0], "linear": "qkv", "act_bits": 8}]})");
  EXPECT_EQ(policy.act_bits(0, "down"), 8);
  EXPECT_EQ(policy.act_bits(1, "down"), 16);
  EXPECT_EQ(policy.act_bits(0, "qkv"), 8);
  EXPECT_EQ(policy.act_bits(1, "qkv"), 6);
  check_policy(policy, config);
  EXPECT_THROW(check_policy(Policy(), config), Error, "rule 2 of policy flexq matches nothing");
  EXPECT_THROW(
      check_policy(read(head + R"({"layers": [7], "linear": "o", "act_bits": 8}]})"), config),
      Error, "matches nothing: layers 7, linear o");
  EXPECT_THROW(read(head + R"({"layers": "3-1", "linear": "o", "act_bits": 8}]})"), Error, "3-1");
  EXPECT_THROW(read(head + R"({"layers": "*", "linear": "o", "act_bits": 7}]})"), Error,
               "act_bits is 7, allowed are 6, 8 and 16");
  EXPECT_THROW(read(head + R"({"layers": "*", "linear": "up", "act_bits": 8}]})"), Error,
               "linear is 'up', allowed are qkv");
  std::string many = head;  // each would become a list of 1024 layers
  for (int i = 0; i < 6144; ++i) many += R"({"layers": "0-1023", "linear": "o", "act_bits": 8},)";
  EXPECT_THROW(read(many + R"({"layers": "*", "linear": "o", "act_bits": 8}]})"), Error,
               "policy.rules has more than 6144 rules");
}

TEST(mutated_manifests_never_crash_the_reader) {
  WrittenFolder written(small_llama(), Scheme::kW6Ax, 2);
  std::string text = manifest_text(written.folder);
  std::remove(written.temp.file("config.ini").c_str());
  const int accepted = fuzz(text, 3000, ErrorKind::kWeight, [&](const std::string& mutant) {
    write_text(written.temp.file("manifest.json"), mutant);
    written.open();
  });
  EXPECT(accepted < 3000);
}

TEST(mutated_inis_never_crash_the_reader) {
  WrittenFolder written(small_llama(), Scheme::kFloat, 1, false);
  const std::string text = ini_text(written.folder);
  const int accepted = fuzz(text, 3000, ErrorKind::kWeight, [&](const std::string& mutant) {
    write_text(written.temp.file("config.ini"), mutant);
    written.open();
  });
  EXPECT(accepted > 10 && accepted < 3000);
}
