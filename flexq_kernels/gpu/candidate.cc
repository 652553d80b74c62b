#include "flexq_kernels/gpu/candidate.h"

#include <sstream>

namespace flexq_kernels::gpu {

namespace {

// What the families have in common, under one name each.
template <typename Config>
struct Family;

template <>
struct Family<StreamConfig> {
  static constexpr const char* kName = "stream";
  static constexpr CodeOrder kOrder = CodeOrder::kFragment;
  static constexpr auto why_not = stream_why_not;
  static constexpr auto configs = stream_configs;
  static constexpr auto parse = parse_stream_config;
  static constexpr auto group_sums = stream_group_sums;
};

template <>
struct Family<WgmmaConfig> {
  static constexpr const char* kName = "wgmma";
  static constexpr CodeOrder kOrder = CodeOrder::kNatural;
  static constexpr auto why_not = wgmma_why_not;
  static constexpr auto configs = wgmma_configs;
  static constexpr auto parse = parse_wgmma_config;
  static constexpr auto group_sums = wgmma_group_sums;
};

template <>
struct Family<MmaConfig> {
  static constexpr const char* kName = "mma";
  static constexpr CodeOrder kOrder = CodeOrder::kNatural;
  static constexpr auto why_not = mma_why_not;
  static constexpr auto configs = mma_configs;
  static constexpr auto parse = parse_mma_config;
  static constexpr auto group_sums = mma_group_sums;
};

template <typename Config>
void add_family(std::vector<Candidate>& out, std::vector<Refusal>* refusals,
                const GemmProblem& problem, const Device& device) {
  const std::string reason = Family<Config>::why_not(problem, device);
  if (reason.empty()) {
    for (const Config& config : Family<Config>::configs(problem, device)) out.push_back(config);
  } else if (refusals != nullptr) {
    refusals->push_back({Family<Config>::kName, reason});
  }
}

// Up to 16 tokens a product takes as long as the bytes of its weights, and stream reads them
// fastest; of more its blocks multiply longer than they read, and slices of wgmma take less time,
// unless all row tiles are in the first round of stream's blocks.
bool stream_comes_first(const GemmProblem& problem, const Device& device) {
  constexpr int64_t kFewTokens = 16, kResident = 2;  // blocks of a multiprocessor, of more tokens
  return problem.m <= kFewTokens || row_tiles(problem.n) <= kResident * device.multiprocessors;
}

template <typename Config>
bool parse_family(std::optional<Candidate>& out, const std::string& family,
                  const std::string& text) {
  if (family != Family<Config>::kName) return false;
  if (const auto config = Family<Config>::parse(text)) out = *config;
  return true;
}

template <typename F>
decltype(auto) with_family(const Candidate& candidate, F&& f) {
  return std::visit(
      [&](const auto& config) -> decltype(auto) {
        using Config = std::decay_t<decltype(config)>;
        return f(Family<Config>{}, config);
      },
      candidate);
}

}  // namespace

const char* family_name(const Candidate& candidate) {
  return with_family(candidate, [](auto family, const auto&) { return family.kName; });
}

std::string config_text(const Candidate& candidate) {
  return with_family(candidate, [](auto, const auto& config) {
    std::ostringstream out;
    out << config;
    return out.str();
  });
}

std::optional<Candidate> parse_candidate(const std::string& family, const std::string& config) {
  std::optional<Candidate> out;
  (void)(parse_family<StreamConfig>(out, family, config) ||
         parse_family<WgmmaConfig>(out, family, config) ||
         parse_family<MmaConfig>(out, family, config));
  return out;
}

CodeOrder code_order(const Candidate& candidate) {
  return with_family(candidate, [](auto family, const auto&) { return family.kOrder; });
}

std::vector<Candidate> candidates(const GemmProblem& problem, const Device& device,
                                  std::vector<Refusal>* refusals) {
  std::vector<Candidate> out;
  const bool stream_first = stream_comes_first(problem, device);
  if (stream_first) add_family<StreamConfig>(out, refusals, problem, device);
  add_family<WgmmaConfig>(out, refusals, problem, device);
  if (!stream_first) add_family<StreamConfig>(out, refusals, problem, device);
  add_family<MmaConfig>(out, refusals, problem, device);
  return out;
}

size_t workspace_bytes(const Device& device) { return wgmma_workspace_bytes(device); }

bool needs_workspace(const Candidate& candidate) {
  const auto* config = std::get_if<WgmmaConfig>(&candidate);
  return config != nullptr && config->split;
}

bool takes_gate(const Candidate& candidate, const GemmProblem& problem) {
  const auto* config = std::get_if<WgmmaConfig>(&candidate);
  return config != nullptr && wgmma_takes_gate(*config) && problem.n % kTileRows == 0;
}

void gemm_w6ax(const Output& y, const Activations& a, const Weight& w, const GemmProblem& problem,
               const Candidate& candidate, void* workspace, const Launch& launch) {
  problem.validate();
  if (problem.m == 0) return;
  if (const auto* config = std::get_if<WgmmaConfig>(&candidate)) {
    wgmma_gemm(y, a, w, problem, *config, workspace, launch);
  } else if (const auto* config = std::get_if<StreamConfig>(&candidate)) {
    stream_gemm(y, a, w, problem, *config, launch);
  } else {
    mma_gemm(y, a, w, problem, std::get<MmaConfig>(candidate), launch);
  }
}

void group_sums_w6ax(int32_t* sums, const Activations& a, const Weight& w,
                     const GemmProblem& problem, const Candidate& candidate, const Launch& launch) {
  problem.validate();
  if (problem.m == 0) return;
  with_family(candidate, [&](auto family, const auto& config) {
    family.group_sums(sums, a, w, problem, config, launch);
  });
}

}  // namespace flexq_kernels::gpu
