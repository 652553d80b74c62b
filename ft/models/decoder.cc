#include "ft/models/decoder.h"

#include <algorithm>
#include <utility>

#include "ft/core/cuda.h"
#include "ft/kernels/embedding.h"
#include "ft/kernels/residual.h"
#include "ft/kernels/rope.h"

namespace flexq_ft {

namespace {

void widen(WorkspaceSizes* sizes, const LinearWeight& weight) {
  const ActivationCodes codes = ActivationCodes::of(weight.format, weight.k);
  sizes->quantized_k = std::max(sizes->quantized_k, codes.k);
  sizes->quantized_groups = std::max(sizes->quantized_groups, codes.groups);
}

WorkspaceSizes sizes_of(const ModelConfig& config, const ModelWeights& weights,
                        const DecoderLimits& limits, Device device) {
  WorkspaceSizes sizes;
  sizes.device = device;
  sizes.dtype = limits.dtype;
  sizes.tokens = std::max(limits.tokens, limits.logit_rows);
  sizes.hidden = config.hidden_size;
  sizes.head_dim = config.head_dim;
  sizes.decodes = limits.sequences;
  sizes.positions = limits.positions;
  for (const LayerWeights& layer : weights.layers) {
    sizes.qkv = std::max(sizes.qkv, layer.qkv.n);
    sizes.attention = std::max(sizes.attention, layer.o.k);
    sizes.up = std::max(sizes.up, layer.up.n);
    sizes.inter = std::max(sizes.inter, layer.down.k);
    for (const LinearWeight* weight : {&layer.qkv, &layer.o, &layer.up, &layer.down}) {
      widen(&sizes, *weight);
    }
  }
  widen(&sizes, weights.lm_head);
  return sizes;
}

Buffer rope_table(const ModelConfig& config, int64_t positions, const ComputeDevice& device) {
  if (!config.rope) return {};
  Buffer table = make_rope_table(*config.rope, config.head_dim, positions);
  if (device.device == Device::kCpu) return table;
  Buffer copy(DataType::kFp32, table.tensor().shape(), MemoryKind::kWeights, Device::kCuda);
  cuda::copy(copy.data(), table.data(), table.bytes(), device.stream);
  cuda::synchronize(device.stream);
  return copy;
}

}  // namespace

Decoder::Decoder(const ModelConfig& config, ModelWeights weights, const DecoderLimits& limits,
                 std::shared_ptr<DeviceComm> comm, const ComputeDevice& device)
    : config_(config),
      limits_(limits),
      weights_(std::move(weights)),
      comm_(std::move(comm)),
      device_(device),
      rope_table_(rope_table(config, limits.positions, device)),
      head_input_(limits.dtype, Shape{limits.logit_rows, config.hidden_size},
                  MemoryKind::kActivations, device.device),
      workspace_(sizes_of(config, weights_, limits, device.device)),
      final_norm_(config.norm, weights_.final_norm, config.norm_eps),
      lm_head_(weights_.lm_head, config.vocab_size, limits.logit_rows, comm_->size(),
               device.device) {
  const DecoderWiring& wiring = wiring_of(config);
  const ConstTensor rope = rope_table_.defined() ? rope_table_.tensor() : Tensor();
  layers_.reserve(weights_.layers.size());
  for (const LayerWeights& layer : weights_.layers) {
    layers_.push_back({Norm(wiring.norm, layer.input_norm, config.norm_eps), Attention(layer, rope),
                       Norm(wiring.norm, layer.post_norm, config.norm_eps),
                       Ffn(layer, config.activation, wiring.gated_ffn)});
  }
}

LayerContext Decoder::context(const Watchers& watchers) const {
  return {workspace_, *comm_, watchers, device_};
}

void Decoder::forward(const RaggedBatch& batch, const std::vector<KvPages>& kv,
                      const Watchers& watchers) {
  const int64_t tokens = batch.tokens();
  FLEXQ_FT_CHECK_LE(tokens, limits_.tokens, "tokens of a step");
  FLEXQ_FT_CHECK_EQ(kv.size(), layers_.size(), "layers of the cache");
  const LayerContext ctx = context(watchers);
  const Tensor residual = workspace_.residual(tokens);
  const Tensor normed = workspace_.normed(tokens);
  const Shape table_shape{config_.vocab_size, config_.hidden_size};
  const ConstTensor positional =
      weights_.positional.defined() ? weights_.positional.tensor() : Tensor();

  // What follows may rely on the step's inputs, and on all of the steps before, without a wait.
  full_edge(ctx.stream());
  invokeEmbedding(residual, batch.ids, weights_.embedding.tensor(limits_.dtype, table_shape),
                  batch.positions, positional, ctx.stream());
  ctx.mark("embedding");
  Product pending;  // what the residual stream is still to take in
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    const LinearInput attention_input = layer.attention.qkv().input(normed, ctx);
    layer.input_norm.forward(attention_input, residual, pending, ctx.stream());
    ctx.mark("input_norm");
    pending = layer.attention.forward(attention_input, kv[i], batch, ctx);
    const LinearInput ffn_input = layer.ffn.up().input(normed, ctx);
    layer.post_norm.forward(ffn_input, residual, pending, ctx.stream());
    ctx.mark("post_norm");
    pending = layer.ffn.forward(ffn_input, ctx);
  }
  invokeAddResidual(residual, pending, ctx.stream());
  ctx.mark("residual");
}

void Decoder::logits(Tensor logits, ConstTensor token_rows, const Watchers& watchers) {
  const int64_t rows = token_rows.dim(0);
  FLEXQ_FT_CHECK_LE(rows, limits_.logit_rows, "rows of logits");
  const LayerContext ctx = context(watchers);
  const Tensor picked = head_input_.tensor(limits_.dtype, {rows, config_.hidden_size});
  // Only the rows that need logits go on: a gather is an embedding in the residual stream.
  invokeEmbedding(picked, token_rows, workspace_.residual(workspace_.sizes().tokens), {}, {},
                  ctx.stream());
  final_norm_.forward(picked, picked, ctx.stream());
  ctx.mark("final_norm");
  lm_head_.forward(logits, picked, ctx);
  ctx.mark("lm_head", lm_head_.linear().weight().bytes());
}

std::vector<const Linear*> Decoder::linears() const {
  std::vector<const Linear*> all;
  for (const Layer& layer : layers_) {
    for (const Linear* linear :
         {&layer.attention.qkv(), &layer.attention.o(), &layer.ffn.up(), &layer.ffn.down()}) {
      all.push_back(linear);
    }
  }
  all.push_back(&lm_head_.linear());
  return all;
}

const Linear* Decoder::find_linear(const std::string& name) const {
  for (const Linear* linear : linears()) {
    if (linear->weight().name == name) return linear;
  }
  return nullptr;
}

void Decoder::run_linear(const Linear& linear, Tensor y, ConstTensor x) const {
  FLEXQ_FT_CHECK_LE(x.dim(0), limits_.tokens, linear.weight().name);
  const LayerContext ctx = context({});
  const Tensor values(const_cast<void*>(x.raw()), x.dtype(), x.shape(), x.device());
  LinearInput input = linear.input(values, ctx);
  input.values = values;
  quantize_values(input, ctx.stream());
  invokeFinishProduct(y, linear.forward(y, input, ctx), ctx.stream());
}

}  // namespace flexq_ft
