#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "ft/bin/program_config.h"
#include "ft/core/error.h"
#include "tests/cpp/check.h"

using namespace flexq_ft;

namespace {

constexpr const char* kLlamaIni = R"([ft_instance_hyperparameter]
data_type=fp16
enable_custom_all_reduce=0
pipeline_para_size=1
sparse=0
tensor_para_size=2
int8_mode=1
model_name=llama_7b
model_dir=/models/2-gpu
[request]
beam_width=1 # of beam search
top_k=0
top_p=0.9
temperature=0.7
len_penalty=0.0
min_length=3
request_batch_size=1
request_output_len=8
[llama_7b]
head_num=4
num_layer=2
start_id=0
end_id=7
)";

IniFile ini_of(const std::string& text) {
  return IniFile::parse(text, "x.ini", ErrorKind::kConfig);
}

// kLlamaIni with one text replaced by another.
IniFile llama_ini(const std::string& from = "", const std::string& to = "") {
  std::string text = kLlamaIni;
  if (!from.empty()) text.replace(text.find(from), from.size(), to);
  return ini_of(text);
}

ProgramConfig read(const IniFile& ini) { return read_program_config(ini, kLlamaExample); }

ModelFolder folder_of(Scheme scheme) {
  ModelFolder folder;
  folder.path = "/models/2-gpu";
  folder.scheme = scheme;
  folder.tp = 2;
  ModelConfig& config = folder.config;
  config.vocab_size = 100;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.hidden_size = 32;
  config.inter_size = 64;
  config.max_positions = 20;
  config.rope = RopeConfig{};
  config.eos_ids = {2, 3};
  return folder;
}

std::string start_ids_file(const std::string& text) {
  const auto name = "flexq_ft_test_config." + std::to_string(getpid()) + "/start_ids.csv";
  const std::filesystem::path path = std::filesystem::temp_directory_path() / name;
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
  return path.string();
}

ProgramRequest request_of(const ProgramConfig& config, const std::string& text) {
  return make_request(config, folder_of(Scheme::kFloat), start_ids_file(text));
}

}  // namespace

TEST(an_ft_ini_is_read_with_its_names) {
  const ProgramConfig config = read(llama_ini());
  EXPECT_EQ(config.model_dir, "/models/2-gpu");
  EXPECT_EQ(config.tensor_para_size, 2);
  EXPECT(config.dtype == DataType::kFp16 && config.scheme == Scheme::kW8A16);
  EXPECT_EQ(config.sampling.top_p, 0.9);
  EXPECT_EQ(config.sampling.temperature, 0.7);
  EXPECT_EQ(config.sampling.min_tokens, 3);
  EXPECT(config.sampling.end_ids == std::vector<int64_t>{7});
  EXPECT_EQ(config.timed_iterations, 1);
}

TEST(what_there_is_not_is_refused_by_name_and_line) {
  const auto with = [](const char* from, const char* to) { read(llama_ini(from, to)); };
  EXPECT_THROW(with("pipeline_para_size=1", "pipeline_para_size=2"), Error,
               "x.ini:4: pipeline_para_size is 2");
  EXPECT_THROW(with("beam_width=1", "beam_width=4"), Error, "x.ini:11: beam_width is 4");
  EXPECT_THROW(with("sparse=0", "sparse=true"), Error, "x.ini:5: sparse is 1");
  EXPECT_THROW(with("head_num=4", "num_tasks=1"), Error, "num_tasks is 1");
  EXPECT_THROW(with("head_num=4", "prompt_learning_type=2"), Error, "prompt_learning_type is 2");
  EXPECT_THROW(with("top_k=0", "return_log_probs=on"), Error, "return_log_probs is 1");
}

TEST(a_device_is_auto_cuda_or_cpu) {
  EXPECT(!read(llama_ini()).device);
  EXPECT(!read(llama_ini("sparse=0", "device=auto")).device);
  EXPECT(read(llama_ini("sparse=0", "device=cuda")).device == Device::kCuda);
  EXPECT(read(llama_ini("sparse=0", "device=cpu")).device == Device::kCpu);
  EXPECT_THROW(read(llama_ini("sparse=0", "device=tpu")), Error, "x.ini:5: device is 'tpu'");
}

TEST(int8_modes_that_are_no_scheme_are_refused) {
  for (const char* mode : {"int8_mode=3", "int8_mode=4", "int8_mode=-1", "int8_mode=6"}) {
    EXPECT_THROW(read(llama_ini("int8_mode=1", mode)), Error, "x.ini:7: int8_mode is ");
  }
}

TEST(an_unknown_key_is_named_with_the_nearest) {
  EXPECT_THROW(read(llama_ini("request_output_len", "request_output_length")), Error,
               "did you mean 'request_output_len'?");
  EXPECT_THROW(read(llama_ini("sparse=0", "treads=2")), Error, "x.ini:5: unknown key 'treads'");
}

TEST(sampling_keys_stand_where_the_program_has_them) {
  EXPECT_THROW(read(llama_ini("sparse=0", "top_k=4")), Error,
               "x.ini:5: top_k belongs to section [request] in llama_example");
  EXPECT_THROW(read_program_config(llama_ini(), kMultiGpuGptExample), Error,
               "belongs to section [ft_instance_hyperparameter] in multi_gpu_gpt_example");
}

TEST(a_model_name_without_its_section_is_refused_unless_there_are_none) {
  EXPECT_THROW(read(llama_ini("[llama_7b]", "[llama_7]")), Error,
               "no section [llama_7b], which model_name names; did you mean 'llama_7'?");
  EXPECT_EQ(read(ini_of("[ft_instance_hyperparameter]\nmodel_dir=d\n[request]\n")).model_dir, "d");
}

TEST(other_model_sections_are_left_alone) {
  const ProgramConfig config = read(ini_of(std::string(kLlamaIni) + "[llama_13b]\nhead_num=40\n"));
  EXPECT_EQ(config.tensor_para_size, 2);
}

TEST(sizes_in_the_ini_must_be_the_folders) {
  const ModelFolder folder = folder_of(Scheme::kFloat);
  check_model_section(llama_ini(), kLlamaExample, folder);
  const auto with = [&](const char* to) {
    check_model_section(llama_ini("head_num=4", to), kLlamaExample, folder);
  };
  with("kv_head_num=2");
  with("rope_theta=10000");
  EXPECT_THROW(with("head_num=32"), Error, "x.ini:20: head_num is 32, but /models/2-gpu has 4");
  EXPECT_THROW(with("layernorm_eps=1e-6"), Error, "layernorm_eps is 1e-06");
  EXPECT_THROW(with("rope_theta=500000"), Error, "rope_theta is 500000");
  EXPECT_THROW(with("head_nums=4"), Error, "did you mean 'head_num'?");
}

TEST(each_program_names_the_other_for_its_models) {
  ModelFolder folder = folder_of(Scheme::kFloat);
  folder.config.architecture = Architecture::kOpt;
  EXPECT_THROW(check_model_section(llama_ini(), kLlamaExample, folder), Error,
               "not a model for llama_example but for multi_gpu_gpt_example");
}

TEST(float_folders_run_as_0_1_and_2_and_others_as_they_are) {
  ProgramConfig config;
  const ProgramRequest request;
  for (Scheme scheme : {Scheme::kFloat, Scheme::kW8A16, Scheme::kW8A8}) {
    config.scheme = scheme;
    make_engine_options(config, folder_of(Scheme::kFloat), request);
    EXPECT_THROW(make_engine_options(config, folder_of(Scheme::kW6Ax), request), Error,
                 "/models/2-gpu has 5 (w6ax)");
  }
  config.scheme = Scheme::kW6Ax;
  make_engine_options(config, folder_of(Scheme::kW6Ax), request);
  EXPECT_THROW(make_engine_options(config, folder_of(Scheme::kFloat), request), Error,
               "int8_mode is 5, but /models/2-gpu has 0");
}

TEST(output_lengths_follow_ft) {
  ProgramConfig config;
  config.request_output_len = 8;
  ProgramRequest request = request_of(config, "1, 2, 3\n4\n");
  EXPECT_EQ(request.total_len, 11);
  EXPECT_EQ(request.sampling.max_tokens, 8);
  EXPECT_EQ(request.pad_id, 2);
  config.total_output_len = 3;  // not longer than the longest prompt: ignored
  EXPECT_EQ(request_of(config, "1, 2, 3\n4\n").total_len, 11);
  config.total_output_len = 5;
  EXPECT_EQ(request_of(config, "1, 2, 3\n4\n").sampling.max_tokens, 2);
  config.total_output_len = 21;
  EXPECT_THROW(request_of(config, "1, 2, 3\n4\n"), Error, "21 ids (3 + 18)");
  config.total_output_len = 0;
  config.request_output_len = 0;
  EXPECT_THROW(request_of(config, "1\n"), Error, "nothing to generate");
}

TEST(a_batch_larger_than_the_file_is_not_filled_up) {
  ProgramConfig config;
  config.request_output_len = 4;
  config.batch_size = 3;
  EXPECT_THROW(request_of(config, "1\n2\n"), Error, "request_batch_size is 3, but ");
  config.batch_size = 1;
  EXPECT_EQ(request_of(config, "1\n2\n").prompts.size(), size_t{1});
  config.batch_size = 0;
  EXPECT_EQ(request_of(config, "1\n2\n").prompts.size(), size_t{2});
}

TEST(the_programs_end_id_wins_over_the_folders) {
  ProgramConfig config;
  config.request_output_len = 4;
  config.sampling.end_ids = {9};
  EXPECT_EQ(request_of(config, "1\n").pad_id, 9);
}
