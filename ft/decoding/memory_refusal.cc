#include "ft/decoding/memory_refusal.h"

#include <optional>
#include <string>
#include <vector>

#include "ft/core/check.h"
#include "ft/decoding/kv_cache.h"

namespace flexq_ft {

using detail::join;

namespace {

std::string mebibytes(size_t bytes) { return join((bytes + (1u << 20) - 1) >> 20, " MiB"); }

// A change of the options that the user may make, tried on the plan.
class Remedies {
 public:
  Remedies(const ModelFolder& folder, const EngineOptions& options, const MemoryShare& share)
      : folder_(folder), options_(options), share_(share) {}

  std::string hint() const {
    std::vector<std::string> found;
    if (const int64_t tokens = longest()) found.push_back(join("--max-len ", tokens));
    if (const int64_t batch = largest_batch()) found.push_back(join("--max-batch ", batch));
    if (const auto scheme = smaller_scheme()) found.push_back(join("--scheme ", *scheme));
    if (const int ranks = more_ranks()) found.push_back(more_ranks_hint(ranks));
    if (found.empty()) return "more GPUs (--tp), or a GPU with more memory";
    std::string out;
    for (const std::string& one : found) out += (out.empty() ? "" : ", or ") + one;
    return out;
  }

 private:
  bool fits(const ModelFolder& folder, EngineOptions options, int rank) const {
    options.kv_pages = pages_for(options.max_len);
    return plan_memory(folder, options, rank).total() <= share_.bytes;
  }

  bool fits(const EngineOptions& options) const { return fits(folder_, options, share_.rank); }

  // The largest of 1 … below - 1 that fits, 0 if none does; what fits grows smaller with it.
  template <typename Set>
  int64_t largest(int64_t below, const Set& set) const {
    int64_t good = 0;
    while (good + 1 < below) {
      const int64_t middle = good + (below - good) / 2;
      EngineOptions options = options_;
      set(&options, middle);
      (fits(options) ? good : below) = middle;
    }
    return good;
  }

  int64_t longest() const {
    return kPageTokens *
           largest(pages_for(options_.max_len),
                   [](EngineOptions* options, int64_t n) { options->max_len = n * kPageTokens; });
  }

  int64_t largest_batch() const {
    return largest(options_.max_batch,
                   [](EngineOptions* options, int64_t n) { options->max_batch = n; });
  }

  // One that the folder runs as.
  std::optional<Scheme> smaller_scheme() const {
    if (folder_.scheme != Scheme::kFloat && !options_.synthetic_weights) return {};
    for (const Scheme scheme : {Scheme::kW8A16, Scheme::kW8A8}) {
      EngineOptions options = options_;
      options.scheme = scheme;
      if (scheme != options_.scheme && fits(options)) return scheme;
    }
    return {};
  }

  // The fewest ranks, a power of two, on which it fits.
  int more_ranks() const {
    for (int ranks = 2; ranks <= 64; ranks *= 2) {
      if (ranks <= folder_.tp) continue;
      ModelFolder cut = folder_;
      cut.tp = ranks;
      try {
        cut.shards = even_shards(folder_.config, ranks);
      } catch (const Error&) {
        continue;  // heads or channels do not divide
      }
      if (fits(cut, options_, 0)) return ranks;
    }
    return 0;
  }

  std::string more_ranks_hint(int ranks) const {
    return join("--tp ", ranks, " (", ranks, " GPUs",
                options_.synthetic_weights ? "" : ", of a folder converted for them", ")");
  }

  const ModelFolder& folder_;
  const EngineOptions& options_;
  const MemoryShare& share_;
};

// Without a look at the plan of each: the host's memory is not the engine's alone.
std::string host_hint(const MemoryPlan& plan, const EngineOptions& options, size_t share) {
  const size_t kv = plan[MemoryKind::kKvCache];
  const size_t fixed = plan.total() - kv;
  std::string hint = options.max_batch > 1 ? "a smaller --max-batch, or a scheme of fewer bits"
                                           : "a scheme of fewer bits";
  if (fixed >= share) return hint;
  const double part = static_cast<double>(share - fixed) / static_cast<double>(kv);
  const int64_t fits =
      static_cast<int64_t>(part * static_cast<double>(options.max_len)) / kPageTokens * kPageTokens;
  return fits > 0 ? join("--max-len ", fits, ", or ", hint) : hint;
}

}  // namespace

void refuse_memory(const ModelFolder& folder, const EngineOptions& options,
                   const MemoryShare& share) {
  const MemoryPlan plan = plan_memory(folder, options, share.rank);
  const bool on_gpu = options.device == Device::kCuda;
  const std::string parts =
      join("weights ", mebibytes(plan[MemoryKind::kWeights]), ", KV cache of one sequence of ",
           options.max_len, " tokens ", mebibytes(plan[MemoryKind::kKvCache]),
           ", activations of max_batch ", options.max_batch, " ",
           mebibytes(plan[MemoryKind::kActivations]));
  if (!on_gpu) {
    throw Error(ErrorKind::kOutOfMemory,
                join("the model needs ", mebibytes(plan.total()), " a rank, and ",
                     mebibytes(share.bytes), " are available to it"),
                join(parts, "; ", share.ranks, " rank(s) on this host"),
                host_hint(plan, options, share.bytes));
  }
  throw Error(ErrorKind::kOutOfMemory,
              join("the model needs ", mebibytes(plan.total()), " of GPU ", options.gpu, ", and ",
                   mebibytes(share.bytes), " are available there"),
              join(parts, ", workspace ", mebibytes(plan[MemoryKind::kWorkspace]), "; ",
                   mebibytes(kGpuReserve), " of what is free are left to CUDA itself"),
              Remedies(folder, options, share).hint());
}

}  // namespace flexq_ft
