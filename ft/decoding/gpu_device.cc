#include "ft/decoding/gpu_device.h"

#include <algorithm>

#include "ft/decoding/memory_plan.h"

namespace flexq_ft {

GpuGemmLimits gemm_limits(const ModelFolder& folder, const EngineOptions& options, int rank) {
  GpuGemmLimits limits;
  limits.max_tokens = decoder_limits(options).tokens;
  if (options.scheme != Scheme::kW8A16) return limits;
  const auto length = [&](const std::vector<std::array<int64_t, 2>>& ranges) {
    const std::array<int64_t, 2>& range = ranges[static_cast<size_t>(rank)];
    return range[1] - range[0];
  };
  const ModelConfig& config = folder.config;
  const int64_t q = length(folder.shards.heads) * config.head_dim;
  const int64_t kv = length(folder.shards.kv_heads) * config.head_dim;
  const int64_t inter = length(folder.shards.inter);
  const int64_t widest = std::max(q + 2 * kv, (config.gated_ffn ? 2 : 1) * inter);
  limits.largest_w8a16 = widest * config.hidden_size;
  return limits;
}

bool has_six_bits(const EngineOptions& options) {
  return *options.scheme == Scheme::kW6Ax || *options.lm_head == HeadFormat::kW6;
}

std::unique_ptr<GpuDevice> open_gpu(const ModelFolder& folder, const EngineOptions& options,
                                    int rank) {
  if (options.device == Device::kCpu) return nullptr;
  use_device_of(options);
  auto gpu = std::make_unique<GpuDevice>();
  gpu->gemm = make_gpu_gemm(gemm_limits(folder, options, rank));
  if (has_six_bits(options)) gpu->w6ax = make_w6ax_gemm();
  return gpu;
}

void use_device_of(const EngineOptions& options) {
  if (options.device == Device::kCuda) cuda::use_device(options.gpu);
}

}  // namespace flexq_ft
