// Decoder: the layers of one rank, put together by the architecture's wiring table.
#pragma once

#include <string>
#include <vector>

#include "ft/layers/attention.h"
#include "ft/layers/ffn.h"
#include "ft/layers/lm_head.h"
#include "ft/layers/norm.h"
#include "ft/models/wiring.h"

namespace flexq_ft {

struct DecoderLimits {
  DataType dtype = DataType::kFp32;  // compute type
  int64_t positions = 0;             // longest sequence
  int64_t tokens = 0;                // most tokens of one forward
  int64_t sequences = 0;             // most sequences of one forward
  int64_t logit_rows = 0;            // most rows of one logits call
};

class Decoder {
 public:
  Decoder(const ModelConfig& config, ModelWeights weights, const DecoderLimits& limits,
          std::shared_ptr<DeviceComm> comm, const ComputeDevice& device);
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  const DecoderLimits& limits() const { return limits_; }
  const ModelWeights& weights() const { return weights_; }
  // [positions, head_dim] fp32, or undefined: learned positions.
  ConstTensor rope() const {
    return rope_table_.defined() ? ConstTensor(rope_table_.tensor()) : ConstTensor();
  }

  // Runs the batch through every layer and appends to the cache, kv[layer]. The residual stream
  // stays in the workspace for logits(), until the next forward.
  void forward(const RaggedBatch& batch, const std::vector<KvPages>& kv, const Watchers& watchers);

  // logits [rows, vocab] fp32 of the last forward's tokens; token_rows [rows] int32 says which.
  void logits(Tensor logits, ConstTensor token_rows, const Watchers& watchers);

  // All of them: of layer after layer, then the lm_head.
  std::vector<const Linear*> linears() const;

  // Null if there is none of that name.
  const Linear* find_linear(const std::string& name) const;

  // One linear on its own: y [tokens, n] from x [tokens, k]; tokens <= limits().tokens.
  void run_linear(const Linear& linear, Tensor y, ConstTensor x) const;

 private:
  struct Layer {
    Norm input_norm;
    Attention attention;
    Norm post_norm;
    Ffn ffn;
  };

  LayerContext context(const Watchers& watchers) const;

  ModelConfig config_;
  DecoderLimits limits_;
  ModelWeights weights_;
  std::shared_ptr<DeviceComm> comm_;
  ComputeDevice device_;
  Buffer rope_table_;
  Buffer head_input_;  // [logit_rows, hidden]
  Workspace workspace_;
  std::vector<Layer> layers_;
  Norm final_norm_;
  LmHead lm_head_;
};

}  // namespace flexq_ft
