// The CPU twins: what each op's .cc calls after its checks, for tensors on the CPU.
#pragma once

#include "ft/core/model_config.h"
#include "ft/core/tensor.h"
#include "ft/kernels/paged_kv.h"

namespace flexq_ft::cpu {

void rms_norm(Tensor out, ConstTensor x, ConstTensor weight, float eps);
void layer_norm(Tensor out, ConstTensor x, ConstTensor weight, ConstTensor bias, float eps);
void add_residual(Tensor x, ConstTensor y, ConstTensor bias);
void activation(Tensor out, ConstTensor x, Activation activation, bool gated);
void embedding(Tensor out, ConstTensor ids, ConstTensor table, ConstTensor positions,
               ConstTensor positional);
void rope_append(Tensor q, KvPages kv, ConstTensor qkv, ConstTensor rope, const RaggedBatch& batch);
void attention(Tensor out, ConstTensor q, KvPages kv, const RaggedBatch& batch);
void gemm_float(Tensor y, ConstTensor x, ConstTensor w, ConstTensor bias);
void gemm_w8a16(Tensor y, ConstTensor x, ConstTensor w, ConstTensor scale, ConstTensor bias);
void gemm_w8a8(Tensor y, ConstTensor codes, ConstTensor act_scale, ConstTensor w, ConstTensor scale,
               ConstTensor bias);

}  // namespace flexq_ft::cpu
