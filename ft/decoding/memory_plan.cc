#include "ft/decoding/memory_plan.h"

#include <algorithm>

#include "flexq_kernels/pack.h"
#include "ft/decoding/kv_cache.h"
#include "ft/kernels/gemm.h"

namespace flexq_ft {

namespace {

int64_t length(const std::array<int64_t, 2>& range) { return range[1] - range[0]; }

// Sizes of one rank's share.
struct RankShape {
  int64_t q, kv, inter, up, vocab;

  RankShape(const ModelFolder& folder, int rank) {
    const ModelConfig& config = folder.config;
    const size_t r = static_cast<size_t>(rank);
    q = length(folder.shards.heads[r]) * config.head_dim;
    kv = length(folder.shards.kv_heads[r]) * config.head_dim;
    inter = length(folder.shards.inter[r]);
    up = config.gated_ffn ? 2 * inter : inter;
    vocab = (config.vocab_size + folder.tp - 1) / folder.tp;
  }
};

size_t linear_bytes(Scheme scheme, DataType dtype, int64_t n, int64_t k) {
  const size_t rows = static_cast<size_t>(n);
  switch (scheme) {
    case Scheme::kFloat:
      return panel_bytes(n, k, dtype);
    case Scheme::kW8A16:
      return panel_bytes(n, k, DataType::kInt8) + rows * sizeof(float);
    case Scheme::kW8A8:
      return panel_pairs_bytes(n, k) + rows * sizeof(float);
    case Scheme::kW6Ax:
      return static_cast<size_t>(flexq_kernels::packed_bytes(n, k)) +
             rows * static_cast<size_t>(flexq_kernels::group_count(k)) * sizeof(uint16_t);
  }
  return 0;
}

size_t weight_bytes(const ModelConfig& config, const EngineOptions& options,
                    const RankShape& shape) {
  const Scheme scheme = *options.scheme;
  const DataType dtype = *options.dtype;
  const int64_t hidden = config.hidden_size;
  const size_t layer = linear_bytes(scheme, dtype, shape.q + 2 * shape.kv, hidden) +
                       linear_bytes(scheme, dtype, hidden, shape.q) +
                       linear_bytes(scheme, dtype, shape.up, hidden) +
                       linear_bytes(scheme, dtype, hidden, shape.inter);
  const int64_t table_rows = config.vocab_size + (config.rope ? 0 : config.max_positions);
  return static_cast<size_t>(config.num_layers) * layer +
         static_cast<size_t>(table_rows * hidden) * size_of(dtype) +
         linear_bytes(Scheme::kFloat, dtype, shape.vocab, hidden);
}

size_t activation_bytes(const ModelFolder& folder, const EngineOptions& options,
                        const RankShape& shape) {
  const ModelConfig& config = folder.config;
  const DecoderLimits limits = decoder_limits(options);
  WorkspaceSizes sizes;
  sizes.dtype = *options.dtype;
  sizes.tokens = std::max(limits.tokens, limits.logit_rows);
  sizes.hidden = config.hidden_size;
  sizes.qkv = shape.q + 2 * shape.kv;
  sizes.attention = shape.q;
  sizes.up = shape.up;
  sizes.inter = shape.inter;
  if (options.scheme == Scheme::kW8A8 || options.scheme == Scheme::kW6Ax) {
    sizes.quantized_groups =
        flexq_kernels::group_count(std::max({config.hidden_size, shape.q, shape.inter}));
    sizes.quantized_k = sizes.quantized_groups * flexq_kernels::kGroupSize;
  }
  const int64_t logits = limits.logit_rows * config.vocab_size;
  const int64_t rope = config.rope ? limits.positions * config.head_dim : 0;
  return sizes.bytes() + static_cast<size_t>(logits + rope) * sizeof(float) +
         LmHead::gather_bytes(config.vocab_size, limits.logit_rows, folder.tp);
}

std::string mebibytes(size_t bytes) { return detail::join((bytes + (1u << 20) - 1) >> 20, " MiB"); }

// plan is that of one sequence of max_len.
[[noreturn]] void refuse(const MemoryPlan& plan, const EngineOptions& options, int ranks,
                         size_t share) {
  const size_t kv = plan[MemoryKind::kKvCache];
  const size_t fixed = plan.total() - kv;
  std::string hint = options.max_batch > 1 ? "a smaller --max-batch, or a scheme of fewer bits"
                                           : "a scheme of fewer bits";
  if (fixed < share) {
    const double part = static_cast<double>(share - fixed) / static_cast<double>(kv);
    const int64_t fits = static_cast<int64_t>(part * static_cast<double>(options.max_len)) /
                         kPageTokens * kPageTokens;
    if (fits > 0) hint = detail::join("--max-len ", fits, ", or ", hint);
  }
  throw Error(
      ErrorKind::kOutOfMemory,
      detail::join("the model needs ", mebibytes(plan.total()), " a rank, and ", mebibytes(share),
                   " are available to it"),
      detail::join("weights ", mebibytes(plan[MemoryKind::kWeights]),
                   ", KV cache of one sequence of ", options.max_len, " tokens ", mebibytes(kv),
                   ", activations of max_batch ", options.max_batch, " ",
                   mebibytes(plan[MemoryKind::kActivations]), "; ", ranks, " rank(s) on this host"),
      hint);
}

}  // namespace

DecoderLimits decoder_limits(const EngineOptions& options) {
  return {*options.dtype, options.max_len, options.prefill_tokens + options.max_batch,
          options.max_batch, std::max(kLogitRows, options.max_batch)};
}

size_t MemoryPlan::total() const {
  size_t sum = 0;
  for (size_t part : bytes) sum += part;
  return sum;
}

MemoryPlan plan_memory(const ModelFolder& folder, const EngineOptions& options, int rank) {
  const RankShape shape(folder, rank);
  const ModelConfig& config = folder.config;
  MemoryPlan plan;
  plan[MemoryKind::kWeights] = weight_bytes(config, options, shape);
  plan[MemoryKind::kKvCache] = KvCache::bytes(
      config.num_layers, options.kv_pages,
      length(folder.shards.kv_heads[static_cast<size_t>(rank)]), config.head_dim, *options.dtype);
  plan[MemoryKind::kActivations] = activation_bytes(folder, options, shape);
  return plan;
}

int64_t fit_kv_pages(const ModelFolder& folder, const EngineOptions& options, int rank, int ranks,
                     size_t available) {
  const int64_t one = pages_for(options.max_len);
  const int64_t wanted = options.kv_pages > 0 ? options.kv_pages : options.max_batch * one;
  if (available == 0) return wanted;
  EngineOptions least = options;
  least.kv_pages = one;
  const MemoryPlan plan = plan_memory(folder, least, rank);
  const size_t share = available / static_cast<size_t>(ranks);
  const size_t kv = plan[MemoryKind::kKvCache];
  const size_t fixed = plan.total() - kv;
  if (plan.total() > share) refuse(plan, options, ranks, share);
  const size_t page = kv / static_cast<size_t>(one);
  const size_t room = share - share / 10;
  const int64_t fits = room > fixed ? static_cast<int64_t>((room - fixed) / page) : 0;
  return std::min(wanted, std::max(one, fits));
}

}  // namespace flexq_ft
