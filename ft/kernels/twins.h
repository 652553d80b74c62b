// The two sides of every op: what its .cc calls after its checks, for tensors on the CPU and on a
// GPU. In a build without CUDA gpu:: throws Error{kDevice} (gpu_absent.cc).
#pragma once

#include "ft/core/model_config.h"
#include "ft/core/row_order.h"
#include "ft/core/stream.h"
#include "ft/core/tensor.h"
#include "ft/kernels/attention.h"
#include "ft/kernels/norm.h"
#include "ft/kernels/paged_kv.h"
#include "ft/kernels/product.h"
#include "ft/kernels/random_fill.h"
#include "ft/kernels/step_inputs.h"

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
void finish_product(Tensor out, const Product& product);
void pad_columns(Tensor out, ConstTensor x);
void gather_columns(Tensor out, ConstTensor parts);
// Throws unless the product is fp32 with its scales applied, as every linear on the CPU leaves it.
void check_finished(const Product& product);
void repack_rows(Tensor dst, ConstTensor src, int64_t row, int64_t column, bool row_major_nk,
                 RowOrder order);
void place_tiles(Tensor dst, ConstTensor src, int64_t first, int64_t k, RowOrder order);
void tile_scales(Tensor dst, ConstTensor src, int64_t k);
void random_fill(Tensor out, const RandomFill& fill, int64_t first);

}  // namespace flexq_ft::cpu

namespace flexq_ft::gpu {

// out = norm(residual += product), product undefined: norm(residual). residual may be const then.
void residual_norm(const LinearInput& out, Tensor residual, const Product& product,
                   const NormArgs& norm, Stream stream);
void add_residual(Tensor residual, const Product& product, Stream stream);
void activation(const LinearInput& out, const Product& x, Activation activation, bool gated,
                RowOrder order, Stream stream);
void embedding(Tensor out, ConstTensor ids, ConstTensor table, ConstTensor positions,
               ConstTensor positional, Stream stream);
void rope_append(Tensor q, KvPages kv, const Product& qkv, ConstTensor rope,
                 const RaggedBatch& batch, Stream stream);
void attention(const LinearInput& out, ConstTensor q, KvPages kv, const RaggedBatch& batch,
               Tensor workspace, Stream stream);
size_t attention_workspace_bytes(const AttentionSizes& sizes);
void finish_product(Tensor out, const Product& product, Stream stream);
void quantize_activations(const LinearInput& input, Stream stream);
void repack_rows(Tensor dst, ConstTensor src, int64_t row, int64_t column, bool row_major_nk,
                 RowOrder order, Stream stream);
void place_tiles(Tensor dst, ConstTensor src, int64_t first, int64_t k, RowOrder order,
                 Stream stream);
void tile_scales(Tensor dst, ConstTensor src, int64_t k, Stream stream);
void random_fill(Tensor out, const RandomFill& fill, int64_t first, Stream stream);
void step_inputs(const StepInputs& out, ConstTensor items, const SlotTensors& slots,
                 int32_t scratch_page, Stream stream);
void pad_columns(Tensor out, ConstTensor x, Stream stream);
void gather_columns(Tensor out, ConstTensor parts, Stream stream);

}  // namespace flexq_ft::gpu
