// Attention: QKV product, rotation and cache, attention, output product, all-reduce.
// Tensor parallel: the rank's heads; the output product is row-parallel.
#pragma once

#include "ft/kernels/paged_kv.h"
#include "ft/layers/linear.h"

namespace flexq_ft {

class Attention {
 public:
  // Keeps references: weights and the rotary table must outlive the layer. rope_table is undefined
  // where positions are learned.
  Attention(const LayerWeights& weights, ConstTensor rope_table)
      : qkv_(weights.qkv), o_(weights.o), o_bias_(&weights.o_bias), rope_table_(rope_table) {}

  // [tokens, hidden], to be added to the residual stream; x is the normed residual, made for qkv().
  Product forward(const LinearInput& x, KvPages kv, const RaggedBatch& batch,
                  const LayerContext& context) const;

  const Linear& qkv() const { return qkv_; }
  const Linear& o() const { return o_; }

 private:
  Linear qkv_;
  Linear o_;
  const Buffer* o_bias_;
  ConstTensor rope_table_;
};

}  // namespace flexq_ft
