#include "ft/decoding/engine_options.h"

#include <algorithm>

#include "ft/decoding/host.h"
#include "ft/decoding/kv_cache.h"

namespace flexq_ft {

namespace {

// Far above any use; it keeps the products of sizes, and page ids, inside their integers.
constexpr int64_t kMaxBatch = 4096;

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
  const bool quantised_at_load =
      folder.scheme == Scheme::kFloat && (scheme == Scheme::kW8A16 || scheme == Scheme::kW8A8);
  if (scheme == folder.scheme || quantised_at_load) return scheme;
  refuse(detail::join("scheme ", scheme, " was asked for, and ", folder.path, " holds ",
                      folder.scheme, " weights"),
         "float folders run as w8a16 and w8a8 too; all others run as they were converted",
         detail::join("flexq-ft convert SOURCE OUT --scheme ", scheme));
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

}  // namespace

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
  options.dtype = asked.dtype.value_or(folder.dtype);
  if (!is_float(*options.dtype)) {
    refuse(detail::join("dtype ", *options.dtype, " is not a compute type"), {},
           "use fp16, bf16 or fp32");
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
  check_at_least_one("prefill_tokens", asked.prefill_tokens);
  options.prefill_tokens = std::min(asked.prefill_tokens, asked.max_batch * options.max_len);
  if (asked.threads < 0) check_at_least_one("threads", asked.threads);
  if (asked.threads == 0) options.threads = std::max(1, usable_cores() / ranks);
  return options;
}

}  // namespace flexq_ft
