#include "ft/decoding/engine_options.h"

#include <algorithm>

#include "ft/core/cuda.h"
#include "ft/decoding/host.h"
#include "ft/decoding/kv_cache.h"
#include "ft/kernels/device_sampling.h"
#include "ft/weights/synthetic_source.h"

namespace flexq_ft {

namespace {

// Far above any use; it keeps the products of sizes, and page ids, inside their integers.
constexpr int64_t kMaxBatch = 4096;
constexpr int kMaxThreads = 1024;

// Rows enough to keep the products busy; more only make the others wait longer for their token.
constexpr int64_t kCpuPrefillTokens = 512;
constexpr int64_t kGpuPrefillTokens = 2048;

constexpr int kOldestGpu = 8;  // compute capability 8.0: bf16 and asynchronous copies

[[noreturn]] void refuse(const std::string& message, std::string cause, std::string hint) {
  throw Error(ErrorKind::kConfig, message, std::move(cause), std::move(hint));
}

void check_at_least_one(const char* name, int64_t value) {
  if (value >= 1) return;
  refuse(detail::join(name, " is ", value, "; it must be at least 1"), {},
         detail::join("leave ", name, " out"));
}

Scheme resolve_scheme(const EngineOptions& asked, const ModelFolder& folder) {
  const Scheme scheme = asked.scheme.value_or(folder.scheme);
  const bool quantised_at_load = folder.scheme == Scheme::kFloat && is_w8(scheme);
  if (scheme == folder.scheme || quantised_at_load || asked.synthetic_weights) return scheme;
  refuse(detail::join("scheme ", scheme, " was asked for, and ", folder.path, " holds ",
                      folder.scheme, " weights"),
         "float folders run as w8a16 and w8a8 too; all others run as they were converted",
         detail::join("flexq-ft convert SOURCE OUT --scheme ", scheme));
}

HeadFormat resolve_head(const EngineOptions& asked, const ModelFolder& folder) {
  const HeadFormat head = asked.lm_head.value_or(folder.lm_head);
  if (head == folder.lm_head || asked.synthetic_weights) return head;
  refuse(detail::join("lm_head ", head, " was asked for, and ", folder.path, " holds it in ",
                      folder.lm_head),
         "the head is quantised at conversion only",
         detail::join("flexq-ft convert SOURCE OUT --lm-head ", head));
}

// A given policy must fit the model. One policy may serve both architectures, so a rule for every
// layer may name the other architecture's linear of the same place (down and fc2, gate_up and fc1).
void check_given_policy(const Policy& policy, const ModelFolder& folder, Scheme scheme) {
  if (scheme != Scheme::kW6Ax) {
    refuse(detail::join("policy ", policy.name, " was given, and the scheme is ", scheme),
           "policies set activation bits, which only w6ax has", "leave the policy out");
  }
  const std::vector<std::string> names = linear_names(folder.config);
  const auto is_elsewhere = [&](const Policy::Rule& rule) {
    const bool has = std::find(names.begin(), names.end(), rule.linear) != names.end();
    return rule.layers.empty() && !has;
  };
  Policy own = policy;
  own.rules.erase(std::remove_if(own.rules.begin(), own.rules.end(), is_elsewhere),
                  own.rules.end());
  check_policy(own, folder.config);
}

int64_t resolve_max_len(int64_t asked, const ModelConfig& config) {
  const int64_t limit = context_limit(config);
  if (asked < 0) check_at_least_one("max_len", asked);
  if (asked == 0) return limit;
  if (asked <= limit) return asked;
  const bool windowed = limit < config.max_positions;
  refuse(detail::join("max_len is ", asked, ", and the model has ",
                      windowed ? "a sliding_window of " : "", limit,
                      windowed ? " tokens" : " positions"),
         windowed ? "contexts beyond the sliding window are not supported" : "",
         detail::join("--max-len ", limit));
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

void check_gpu(int gpu) {
  const int count = cuda::device_count();
  if (count == 0) {
    throw Error(ErrorKind::kDevice, "there is no GPU to run on", cuda::no_device_cause(),
                "--device cpu");
  }
  if (gpu < 0 || gpu >= count) {
    refuse(detail::join("GPU ", gpu, " was asked for, and this host has ", count),
           count == 1 ? "its index is 0" : detail::join("they are 0 … ", count - 1),
           "each rank of a host takes a GPU of its own: --device cuda:0, or a smaller --tp");
  }
  const cuda::DeviceInfo info = cuda::device_info(gpu);
  if (info.major >= kOldestGpu) return;
  throw Error(ErrorKind::kDevice,
              detail::join("GPU ", gpu, " (", info.name, ") has compute capability ", info.major,
                           ".", info.minor, ", and ", kOldestGpu, ".0 is needed"),
              "the kernels are built for Ampere and later", "another GPU, or --device cpu");
}

// What a GPU does not compute. dtype is resolved.
void check_gpu_type(DataType dtype, bool is_given) {
  if (dtype != DataType::kFp32) return;
  refuse("a GPU computes in fp16 or bf16, not in fp32",
         is_given ? "" : "the folder's weights are fp32, and no dtype was given",
         "--dtype bf16, or --dtype fp16; fp32 runs with --device cpu");
}

void check_gpu_vocab(int64_t vocab_size) {
  if (vocab_size <= kMaxSampleVocab) return;
  refuse(detail::join("vocab_size is ", vocab_size, ", and a GPU samples from up to ",
                      kMaxSampleVocab, " tokens"),
         "", "--device cpu");
}

// Every product on a GPU reads rows of whole 16-byte pieces, on every rank; but those of six bits,
// whose tiles are padded.
void check_gpu_sizes(const ModelFolder& folder, Scheme scheme, HeadFormat head) {
  const auto check_step = [&](const char* what, int64_t size, int64_t step, const auto& in) {
    if (size % step == 0) return;
    refuse(detail::join(what, " is ", size, ", and a GPU takes multiples of ", step, " in ", in),
           "", folder.tp > 1 ? "--device cpu, or a smaller --tp" : "--device cpu");
  };
  const auto check = [&](const char* what, int64_t size) {
    check_step(what, size, is_w8(scheme) ? 16 : 8, detail::join("scheme ", scheme));
  };
  check("hidden_size", folder.config.hidden_size);
  if (head == HeadFormat::kW8) {
    check_step("hidden_size", folder.config.hidden_size, 16, "an lm_head of w8");
  }
  if (scheme == Scheme::kW6Ax) return;
  for (const auto& [begin, end] : folder.shards.heads) {
    check("the width of a rank's heads", (end - begin) * folder.config.head_dim);
  }
  for (const auto& [begin, end] : folder.shards.inter) {
    check("a rank's inter_size", end - begin);
  }
}

int64_t resolve_prefill_tokens(const EngineOptions& asked, int64_t max_len) {
  int64_t tokens = asked.prefill_tokens;
  if (tokens == 0) tokens = asked.device == Device::kCuda ? kGpuPrefillTokens : kCpuPrefillTokens;
  check_at_least_one("prefill_tokens", tokens);
  return std::min(tokens, asked.max_batch * max_len);
}

}  // namespace

ModelFolder open_model(const std::string& model_dir, const EngineOptions& asked, int ranks) {
  if (asked.synthetic_weights && ends_with(model_dir, ".ini")) {
    ModelFolder folder = shape_folder(model_dir, asked.scheme.value_or(Scheme::kFloat),
                                      asked.dtype.value_or(DataType::kFp16), ranks);
    folder.lm_head = asked.lm_head.value_or(HeadFormat::kFloat);
    return folder;
  }
  return open_model_folder(model_dir);
}

int64_t context_limit(const ModelConfig& config) {
  if (config.sliding_window == 0) return config.max_positions;
  return std::min(config.max_positions, config.sliding_window);
}

void check_ranks(const ModelFolder& folder, int ranks) {
  if (folder.tp == ranks) return;
  refuse(detail::join(folder.path, " was made for ", folder.tp, " rank(s), and ", ranks,
                      " rank(s) run"),
         "the weights of a folder are cut for one tensor-parallel size",
         detail::join("--tp ", folder.tp, ", or flexq-ft convert SOURCE OUT --tp ", ranks));
}

EngineOptions resolve_options(const EngineOptions& asked, const ModelFolder& folder, int ranks) {
  EngineOptions options = asked;
  options.scheme = resolve_scheme(asked, folder);
  options.lm_head = resolve_head(asked, folder);
  options.dtype = asked.dtype.value_or(folder.dtype);
  if (!is_float(*options.dtype)) {
    refuse(detail::join("dtype ", *options.dtype, " is not a compute type"), {},
           "use fp16, bf16 or fp32");
  }
  if (asked.device == Device::kCpu && asked.step_kernel == StepKernelChoice::kOn) {
    refuse("step_kernel is on, and the device is the CPU",
           "decode steps run as one kernel on GPUs only", "--step-kernel auto, or --device cuda");
  }
  if (asked.device == Device::kCuda) {
    check_gpu_type(*options.dtype, asked.dtype.has_value());
    check_gpu(asked.gpu);
    check_gpu_vocab(folder.config.vocab_size);
    check_gpu_sizes(folder, *options.scheme, *options.lm_head);
  }
  if (asked.policy) check_given_policy(*asked.policy, folder, *options.scheme);
  options.policy = asked.policy.value_or(folder.policy);
  options.max_len = resolve_max_len(asked.max_len, folder.config);
  check_at_least_one("max_batch", asked.max_batch);
  if (asked.max_batch > kMaxBatch) {
    refuse(detail::join("max_batch is ", asked.max_batch, ", and at most ", kMaxBatch,
                        " sequences run together"),
           {}, detail::join("--max-batch ", kMaxBatch));
  }
  if (asked.kv_pages != 0 && asked.kv_pages < pages_for(options.max_len)) {
    refuse(detail::join("the KV cache is ", asked.kv_pages, " pages, and one sequence of max_len ",
                        options.max_len, " tokens needs ", pages_for(options.max_len)),
           {}, "a larger cache, or a smaller --max-len");
  }
  options.prefill_tokens = resolve_prefill_tokens(asked, options.max_len);
  if (asked.threads < 0) check_at_least_one("threads", asked.threads);
  if (asked.threads > kMaxThreads) {  // the runtime of OpenMP ends the process beyond some number
    refuse(detail::join("threads is ", asked.threads, ", and at most ", kMaxThreads, " run"), {},
           detail::join("--threads ", usable_cores()));
  }
  if (asked.threads == 0) options.threads = std::max(1, usable_cores() / ranks);
  return options;
}

}  // namespace flexq_ft
