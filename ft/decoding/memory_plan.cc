#include "ft/decoding/memory_plan.h"

#include <algorithm>

#include "flexq_kernels/pack.h"
#include "ft/core/cuda.h"
#include "ft/decoding/gpu_device.h"
#include "ft/decoding/gpu_slots.h"
#include "ft/decoding/host.h"
#include "ft/decoding/kv_cache.h"
#include "ft/decoding/memory_refusal.h"
#include "ft/kernels/gemm.h"
#include "ft/weights/device_upload.h"

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

bool on_gpu(const EngineOptions& options) { return options.device == Device::kCuda; }

// On a GPU: rows, and one scale each where they are int8; or tiles and their scales.
size_t gpu_linear_bytes(Scheme scheme, DataType dtype, int64_t n, int64_t k) {
  if (scheme == Scheme::kW6Ax) {
    return static_cast<size_t>(flexq_kernels::packed_bytes(n, k)) +
           static_cast<size_t>(flexq_kernels::tiled_scale_count(n, k)) * sizeof(uint16_t);
  }
  const size_t count = static_cast<size_t>(n * k);
  if (scheme == Scheme::kFloat) return count * size_of(dtype);
  return count + static_cast<size_t>(n) * sizeof(float);
}

size_t linear_bytes(Device device, Scheme scheme, DataType dtype, int64_t n, int64_t k) {
  if (device == Device::kCuda) return gpu_linear_bytes(scheme, dtype, n, k);
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

size_t rope_bytes(const ModelConfig& config, const EngineOptions& options) {
  return config.rope ? static_cast<size_t>(options.max_len * config.head_dim) * sizeof(float) : 0;
}

// Of what a model's files hold, without norms and biases.
size_t weight_bytes(const ModelConfig& config, const EngineOptions& options,
                    const RankShape& shape) {
  const DataType dtype = *options.dtype;
  const int64_t hidden = config.hidden_size;
  const auto linear = [&](int64_t n, int64_t k) {
    return linear_bytes(options.device, *options.scheme, dtype, n, k);
  };
  const size_t layer = linear(shape.q + 2 * shape.kv, hidden) + linear(hidden, shape.q) +
                       linear(shape.up, hidden) + linear(hidden, shape.inter);
  const int64_t table_rows = config.vocab_size + (config.rope ? 0 : config.max_positions);
  return static_cast<size_t>(config.num_layers) * layer +
         static_cast<size_t>(table_rows * hidden) * size_of(dtype) +
         linear_bytes(options.device, scheme_of(*options.lm_head), dtype, shape.vocab, hidden);
}

// The logits of a step; on a GPU with the state of every slot, and the rows that go into the head.
size_t output_bytes(const ModelConfig& config, const EngineOptions& options,
                    const DecoderLimits& limits) {
  const int64_t rows = limits.logit_rows;
  if (!on_gpu(options)) return static_cast<size_t>(rows * config.vocab_size) * sizeof(float);
  const GpuSlotSizes slots{options.max_batch, options.max_len, limits.tokens, rows,
                           config.vocab_size};
  return slots.bytes() + static_cast<size_t>(rows * config.hidden_size) * size_of(*options.dtype);
}

size_t activation_bytes(const ModelFolder& folder, const EngineOptions& options,
                        const RankShape& shape) {
  const ModelConfig& config = folder.config;
  const DecoderLimits limits = decoder_limits(options);
  WorkspaceSizes sizes;
  sizes.device = options.device;
  sizes.head_dim = config.head_dim;
  sizes.decodes = limits.sequences;
  sizes.positions = limits.positions;
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
  return sizes.bytes() + output_bytes(config, options, limits) +
         LmHead::gather_bytes(config.vocab_size, limits.logit_rows, folder.tp) +
         (on_gpu(options) ? 0 : rope_bytes(config, options));
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
  // A captured step computes idle rows too, on a page of their own.
  const int64_t idle_pages = on_gpu(options) ? 1 : 0;
  MemoryPlan plan;
  plan[MemoryKind::kWeights] =
      weight_bytes(config, options, shape) + (on_gpu(options) ? rope_bytes(config, options) : 0);
  plan[MemoryKind::kKvCache] = KvCache::bytes(
      config.num_layers, options.kv_pages + idle_pages,
      length(folder.shards.kv_heads[static_cast<size_t>(rank)]), config.head_dim, *options.dtype);
  plan[MemoryKind::kActivations] = activation_bytes(folder, options, shape);
  if (on_gpu(options)) {
    const bool w6ax = has_six_bits(options);
    const bool uploads = !options.synthetic_weights || w6ax;
    plan[MemoryKind::kWorkspace] = gpu_gemm_workspace_bytes(gemm_limits(folder, options, rank)) +
                                   (w6ax ? w6ax_gemm_workspace_bytes() : 0) +
                                   (uploads ? DeviceUpload::kBlockBytes : 0);
  }
  return plan;
}

size_t weight_region_bytes(const ModelFolder& folder, const EngineOptions& options, int rank) {
  const RankShape shape(folder, rank);
  const ModelConfig& config = folder.config;
  constexpr size_t kRounding = 256, kBuffersOfLayer = 16;
  const auto hidden = static_cast<size_t>(config.hidden_size);
  const size_t biases = static_cast<size_t>(shape.q + 2 * shape.kv + shape.up) + 2 * hidden;
  const size_t layer =
      4 * biases + 4 * hidden * size_of(*options.dtype) + kBuffersOfLayer * kRounding;
  return weight_bytes(config, options, shape) + static_cast<size_t>(config.num_layers + 1) * layer;
}

size_t available_bytes(Device device) {
  if (device == Device::kCpu) return available_memory();
  const size_t free = cuda::free_bytes();
  return free > kGpuReserve ? free - kGpuReserve : 1;
}

int64_t fit_kv_pages(const ModelFolder& folder, const EngineOptions& options, int rank, int ranks,
                     size_t available) {
  const int64_t one = pages_for(options.max_len);
  const int64_t wanted = options.kv_pages > 0 ? options.kv_pages : options.max_batch * one;
  if (available == 0) return wanted;
  EngineOptions least = options;
  least.kv_pages = one;
  const MemoryPlan plan = plan_memory(folder, least, rank);
  const size_t share = on_gpu(options) ? available : available / static_cast<size_t>(ranks);
  if (plan.total() > share) refuse_memory(folder, least, {rank, ranks, share});
  least.kv_pages = one + 1;
  const size_t page = plan_memory(folder, least, rank).total() - plan.total();
  const size_t fixed = plan.total() - static_cast<size_t>(one) * page;
  const size_t room = on_gpu(options) ? share : share - share / 10;
  const int64_t fits = room > fixed ? static_cast<int64_t>((room - fixed) / page) : 0;
  return std::min(wanted, std::max(one, fits));
}

}  // namespace flexq_ft
