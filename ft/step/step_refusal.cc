// What the step kernel does not take.
#include <algorithm>

#include "ft/core/check.h"
#include "ft/core/row_order.h"
#include "ft/step/args.h"
#include "ft/step/shared_map.h"
#include "ft/step/step_kernel.h"

namespace flexq_ft {

namespace {

// Bytes of a row that the ring takes must be whole steps of 32.
std::string row_refusal(const LinearWeight& w) {
  const int64_t bytes = w.k * static_cast<int64_t>(size_of(w.format.storage));
  if (w.format.scheme != Scheme::kW6Ax && bytes % 32 != 0) {
    return detail::join(w.name, " has rows of ", bytes, " bytes, not a multiple of 32");
  }
  return {};
}

std::string weight_refusal(const LinearWeight& w, const StepModel& model, Scheme scheme) {
  if (w.format.scheme != scheme) {
    return detail::join(w.name, " is ", w.format.scheme, " where others are ", scheme);
  }
  if (scheme == Scheme::kFloat && w.format.storage != model.dtype) {
    return detail::join(w.name, " is stored in ", w.format.storage);
  }
  if (scheme == Scheme::kW6Ax && !w.format.quantizes_activations()) {
    return detail::join(w.name, " takes activations of 16 bits with six-bit weights");
  }
  if (w.act_scale > 0.0f) return detail::join(w.name, " has a static scale for its inputs");
  if (w.n % 4 != 0 || w.k % 4 != 0) {
    return detail::join(w.name, " is ", w.n, " x ", w.k, ", not multiples of 4");
  }
  return row_refusal(w);
}

std::string shape_refusal(const ModelConfig& config) {
  if (config.head_dim != 64 && config.head_dim != 128) {
    return detail::join("heads of ", config.head_dim, " columns, neither 64 nor 128");
  }
  const int64_t sharing = config.num_heads / config.num_kv_heads;
  if (sharing > step::kMaxSharing) {
    return detail::join(sharing, " query heads of one KV head, more than ", step::kMaxSharing);
  }
  if (config.gated_ffn && config.inter_size % kBandRows != 0) {
    return detail::join("a gated feed-forward of ", config.inter_size,
                        " columns, not a multiple of ", kBandRows);
  }
  if (config.hidden_size % 8 != 0) {
    return detail::join("rows of ", config.hidden_size, " values, not a multiple of 8");
  }
  constexpr int64_t kMostRows = int64_t{step::kMostUnits} * step::kStageRows;
  const int64_t rows = std::max((config.gated_ffn ? 2 : 1) * config.inter_size, config.vocab_size);
  if (rows > kMostRows) return detail::join("a product of ", rows, " rows, more than ", kMostRows);
  const bool layer = config.norm == NormType::kLayer;
  const int widest = step::widest_norm(layer ? 2 : 1);
  if (config.hidden_size > widest) {
    return detail::join(layer ? "a layer norm of " : "an RMS norm of ", config.hidden_size,
                        " columns, more than ", widest);
  }
  return {};
}

}  // namespace

std::string StepKernel::refusal(const StepModel& model, const cuda::DeviceInfo& device) {
  if (device.major != 9) {
    return detail::join("the GPU has compute capability ", device.major, ".", device.minor,
                        ", not 9.0");
  }
  std::string why = shape_refusal(model.config);
  if (!why.empty()) return why;
  const std::string built = cuda::architectures();
  if (built.find("90") == std::string::npos) {
    return detail::join("this build has no code for sm_90 (it was compiled for ", built, ")");
  }
  if (model.dtype != DataType::kFp16 && model.dtype != DataType::kBf16) {
    return detail::join("the compute type is ", model.dtype);
  }
  const Scheme scheme = model.weights.layers.front().qkv.format.scheme;
  for (const LayerWeights& layer : model.weights.layers) {
    for (const LinearWeight* w : {&layer.qkv, &layer.o, &layer.up, &layer.down}) {
      why = weight_refusal(*w, model, scheme);
      if (!why.empty()) return why;
    }
  }
  const LinearWeight& head = model.weights.lm_head;
  if (head.format.scheme != Scheme::kFloat) {
    return detail::join("the lm_head has weights of ", head.format.scheme == Scheme::kW6Ax ? 6 : 8,
                        " bits, and the kernel's has the compute type");
  }
  if (head.format.storage != model.dtype || head.bias.defined()) {
    return "the lm_head is not of the compute type";
  }
  if (head.n != model.config.vocab_size) return "the model is cut for several GPUs";
  return row_refusal(head);
}

}  // namespace flexq_ft
