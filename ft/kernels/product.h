// What passes between a linear layer and the ops on either side of it, so that those ops can be
// fused with what a precision needs: an op before a linear quantises what it makes, an op behind it
// applies the scales.
#pragma once

#include "flexq_kernels/gpu/gemm.h"
#include "flexq_kernels/quantize.h"
#include "ft/core/stream.h"
#include "ft/core/tensor.h"

namespace flexq_ft {

// What a linear reads, [tokens, k]. The op that makes it fills what is defined.
struct LinearInput {
  Tensor values;  // [tokens, k] compute type; may be undefined on a GPU where codes are
  Tensor codes;   // [tokens, groups * group] int8, the last group padded with zeros; or undefined
  Tensor scales;  // fp32, with the codes: [tokens, groups], or see scale_stride
  DataType dtype = DataType::kFp32;  // compute type, to which values are rounded before all else
  int64_t group = 0;                 // along k; k for one scale per token
  int act_bits = 16;                 // 8 or 6 with codes
  float static_scale = 0.0f;         // of every token, if above 0; else each has its own

  // What W6Ax products on a GPU read (flexq_kernels/gpu/gemm.h); the ops of a GPU can make it.
  int64_t scale_stride = 0;  // scales are [groups, scale_stride], token by token inside a row
  flexq_kernels::gpu::CodeOrder order =
      flexq_kernels::gpu::CodeOrder::kNatural;  // of groups of 128

  bool quantized() const { return codes.defined(); }
  int64_t tokens() const { return values.defined() ? values.dim(0) : codes.dim(0); }
};

// What a linear gave, [tokens, n], before what the op behind it still applies:
//   value(t, i) = float(values[t, i]) * act_scale[t] * weight_scale[i] + bias[i]
// Rounded values have no scales and no bias. On the CPU values are fp32 and the scales were
// applied; a GPU leaves them to the next kernel.
struct Product {
  Tensor values;             // [tokens, n] fp32, or int32 sums, or rounded to the compute type
  ConstTensor act_scale;     // [tokens] fp32, or undefined: 1
  ConstTensor weight_scale;  // [n] fp32, or undefined: 1
  ConstTensor bias;          // [n] fp32, or undefined: 0

  bool defined() const { return values.defined(); }
};

// The name that flexq_kernels has for a compute type.
flexq_kernels::FloatType float_type(DataType dtype);

// Throws Error{kInternal} unless the parts fit together.
void check_linear_input(const LinearInput& input, int64_t tokens, int64_t k);
void check_product(const Product& product, int64_t tokens, int64_t n);

// Codes and scales of input.values; a no-op where the input is not quantised. On the CPU, where
// values are always there, the ops that make a LinearInput end with it.
void quantize_values(const LinearInput& input, Stream stream);

// out [tokens, n] fp32 = the values of the product, scales and bias applied. out may be
// product.values.
void invokeFinishProduct(Tensor out, const Product& product, Stream stream);

}  // namespace flexq_ft
