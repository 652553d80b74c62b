// flexq_ft._native.ops: the ops of ft/kernels on NumPy arrays, for tests and benchmarks.
#include <pybind11/stl.h>

#include <algorithm>

#include "ft/binding/arrays.h"
#include "ft/binding/module.h"
#include "ft/binding/staging.h"
#include "ft/core/buffer.h"
#include "ft/kernels/activation.h"
#include "ft/kernels/attention.h"
#include "ft/kernels/embedding.h"
#include "ft/kernels/gemm.h"
#include "ft/kernels/norm.h"
#include "ft/kernels/residual.h"
#include "ft/kernels/rope.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;

namespace flexq_ft {

namespace {

Product product_of(Staging& stage, const py::array& y, const py::object& act_scale,
                   const py::object& weight_scale, const py::object& bias) {
  const ConstTensor values = stage.in(y);
  return {Tensor(const_cast<void*>(values.raw()), values.dtype(), values.shape(), values.device()),
          stage.optional_in(act_scale), stage.optional_in(weight_scale), stage.optional_in(bias)};
}

py::array norm(const py::array& x, const py::array& weight, const py::object& bias, float eps) {
  Staging stage;
  const ConstTensor in = stage.in(x);
  py::array out = new_array(in.dtype(), in.shape());
  NormArgs args{bias.is_none() ? NormType::kRms : NormType::kLayer, stage.in(weight),
                stage.optional_in(bias), eps};
  invokeNorm(stage.inout(out), in, args, stage.stream());
  stage.finish();
  return out;
}

py::array rms_norm(const py::array& x, const py::array& weight, float eps) {
  return norm(x, weight, py::none(), eps);
}

py::array layer_norm(const py::array& x, const py::array& weight, const py::array& bias,
                     float eps) {
  return norm(x, weight, bias, eps);
}

void add_residual(py::array x, const py::array& y, const py::object& bias) {
  Staging stage;
  const Product product = product_of(stage, y, py::none(), py::none(), bias);
  invokeAddResidual(stage.inout(x), product, stage.stream());
  stage.finish();
}

// A LinearInput in new arrays: (values, codes or None, scales or None).
struct InputArrays {
  LinearInput input;
  py::array values;
  py::object codes = py::none();
  py::object scales = py::none();

  InputArrays(Staging& stage, DataType dtype, int64_t tokens, int64_t k, int act_bits,
              int64_t group) {
    values = new_array(dtype, Shape{tokens, k});
    input.values = stage.inout(values);
    input.dtype = dtype;
    if (act_bits == 16) return;
    const int64_t groups = (k + group - 1) / group;
    py::array new_codes = new_array(DataType::kInt8, Shape{tokens, groups * group});
    py::array new_scales = new_array(DataType::kFp32, Shape{tokens, groups});
    input.codes = stage.inout(new_codes);
    input.scales = stage.inout(new_scales);
    input.group = group;
    input.act_bits = act_bits;
    codes = new_codes;
    scales = new_scales;
  }

  py::tuple tuple() const { return py::make_tuple(values, codes, scales); }
};

py::tuple residual_norm(py::array residual, const py::object& y, const py::object& act_scale,
                        const py::object& weight_scale, const py::object& bias,
                        const py::array& weight, const py::object& norm_bias, float eps,
                        int act_bits, int64_t group) {
  Staging stage;
  const Tensor x = stage.inout(residual);
  InputArrays out(stage, x.dtype(), x.dim(0), x.dim(1), act_bits, group);
  const Product product =
      y.is_none() ? Product{}
                  : product_of(stage, y.cast<py::array>(), act_scale, weight_scale, bias);
  const NormArgs args{norm_bias.is_none() ? NormType::kRms : NormType::kLayer, stage.in(weight),
                      stage.optional_in(norm_bias), eps};
  invokeResidualNorm(out.input, x, product, args, stage.stream());
  stage.finish();
  return out.tuple();
}

py::array finish_product(const py::array& y, const py::object& act_scale,
                         const py::object& weight_scale, const py::object& bias) {
  Staging stage;
  const Product product = product_of(stage, y, act_scale, weight_scale, bias);
  py::array out = new_array(DataType::kFp32, product.values.shape());
  invokeFinishProduct(stage.inout(out), product, stage.stream());
  stage.finish();
  return out;
}

py::tuple quantize(const py::array& x, int act_bits, int64_t group) {
  Staging stage;
  const ConstTensor in = stage.in(x);
  InputArrays out(stage, in.dtype(), in.dim(0), in.dim(1), act_bits, group);
  out.input.values = Tensor(const_cast<void*>(in.raw()), in.dtype(), in.shape(), in.device());
  quantize_values(out.input, stage.stream());
  stage.finish();
  return py::make_tuple(out.codes, out.scales);
}

Activation activation_named(const std::string& name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu") return Activation::kGelu;
  throw Error(ErrorKind::kConfig, "unknown activation '" + name + "'", {},
              "use silu, relu or gelu");
}

py::tuple fused_activation(const py::array& x, const std::string& name, const std::string& dtype,
                           bool gated, const py::object& act_scale, const py::object& weight_scale,
                           const py::object& bias, int act_bits, int64_t group) {
  Staging stage;
  const Product product = product_of(stage, x, act_scale, weight_scale, bias);
  FLEXQ_FT_CHECK_EQ(product.values.rank(), 2, "activation: x ", product.values.shape());
  const int64_t columns = product.values.dim(1);
  InputArrays out(stage, dtype_named(dtype), product.values.dim(0), gated ? columns / 2 : columns,
                  act_bits, group);
  (gated ? invokeGatedActivation : invokeActivation)(out.input, product, activation_named(name),
                                                     stage.stream());
  stage.finish();
  return out.tuple();
}

py::array activation(const py::array& x, const std::string& name, const std::string& dtype,
                     bool gated) {
  const py::tuple made =
      fused_activation(x, name, dtype, gated, py::none(), py::none(), py::none(), 16, 0);
  return made[0].cast<py::array>();
}

py::array embedding(const py::array& ids, const py::array& table, const py::object& positions,
                    const py::object& positional) {
  Staging stage;
  const ConstTensor rows = stage.in(table);
  py::array out = new_array(rows.dtype(), Shape{const_tensor(ids).count(), rows.dim(1)});
  invokeEmbedding(stage.inout(out), stage.in(ids), rows, stage.optional_in(positions),
                  stage.optional_in(positional), stage.stream());
  stage.finish();
  return out;
}

py::array rope_table(int64_t head_dim, int64_t positions, double theta, const std::string& type,
                     double factor, double low_freq_factor, double high_freq_factor,
                     int64_t original_max_positions) {
  RopeConfig rope;
  rope.theta = theta;
  if (type == "linear") {
    rope.type = RopeConfig::Type::kLinear;
  } else if (type == "llama3") {
    rope.type = RopeConfig::Type::kLlama3;
  } else if (type != "default") {
    throw Error(ErrorKind::kConfig, "unknown rope type '" + type + "'", {},
                "use default, linear or llama3");
  }
  rope.factor = factor;
  rope.low_freq_factor = low_freq_factor;
  rope.high_freq_factor = high_freq_factor;
  rope.original_max_positions = original_max_positions;
  const Buffer table = make_rope_table(rope, head_dim, positions);
  py::array out = new_array(DataType::kFp32, Shape{positions, head_dim});
  std::memcpy(out.mutable_data(), table.data(), static_cast<size_t>(out.nbytes()));
  return out;
}

// Sequences of one token that come first count as decodes, as in the engine.
RaggedBatch ragged_batch(Staging& stage, const py::array& positions, const py::array& offsets,
                         const py::array& context, const py::array& pages) {
  RaggedBatch batch;
  batch.positions = stage.in(positions);
  batch.offsets = stage.in(offsets);
  batch.context = stage.in(context);
  batch.pages = stage.in(pages);
  const ConstTensor host = const_tensor(offsets);
  if (host.dtype() != DataType::kInt32) return batch;  // refused by the op
  const int32_t* at = host.data<int32_t>();
  const int64_t sequences = std::min(batch.sequences(), host.count() - 1);
  while (batch.decodes < sequences && at[batch.decodes + 1] - at[batch.decodes] == 1) {
    ++batch.decodes;
  }
  for (int64_t s = batch.decodes; s < sequences; ++s) {
    batch.longest = std::max<int64_t>(batch.longest, at[s + 1] - at[s]);
  }
  return batch;
}

py::array rope_append(const py::array& qkv, const py::object& act_scale,
                      const py::object& weight_scale, const py::object& bias, int64_t heads,
                      py::array k, py::array v, const py::object& rope, const py::array& positions,
                      const py::array& offsets, const py::array& context, const py::array& pages) {
  Staging stage;
  const KvPages kv{stage.inout(k), stage.inout(v)};
  const Product product = product_of(stage, qkv, act_scale, weight_scale, bias);
  py::array q = new_array(kv.k.dtype(), Shape{product.values.dim(0), heads * kv.k.dim(3)});
  invokeRopeAppend(stage.inout(q), kv, product, stage.optional_in(rope),
                   ragged_batch(stage, positions, offsets, context, pages), stage.stream());
  stage.finish();
  return q;
}

py::tuple fused_attention(const py::array& q, py::array k, py::array v, const py::array& positions,
                          const py::array& offsets, const py::array& context,
                          const py::array& pages, int act_bits, int64_t group) {
  Staging stage;
  const ConstTensor in = stage.in(q);
  const KvPages kv{stage.inout(k), stage.inout(v)};
  InputArrays out(stage, in.dtype(), in.dim(0), in.dim(1), act_bits, group);
  const RaggedBatch batch = ragged_batch(stage, positions, offsets, context, pages);
  const int64_t head_dim = std::max<int64_t>(1, kv.k.dim(3));
  const auto bytes = static_cast<int64_t>(
      attention_workspace_bytes(batch.decodes, in.dim(1) / head_dim, head_dim, stage.device()));
  invokeAttention(out.input, in, kv, batch, stage.scratch(DataType::kUint8, Shape{bytes}),
                  stage.stream());
  stage.finish();
  return out.tuple();
}

py::array attention(const py::array& q, py::array k, py::array v, const py::array& positions,
                    const py::array& offsets, const py::array& context, const py::array& pages) {
  const py::tuple made = fused_attention(q, k, v, positions, offsets, context, pages, 16, 0);
  return made[0].cast<py::array>();
}

py::array pack_panel(const std::vector<py::array>& parts, const std::string& dtype,
                     bool row_major_nk) {
  const DataType type = dtype_named(dtype);
  const int n_axis = row_major_nk ? 0 : 1;
  int64_t n = 0;
  for (const py::array& part : parts) n += const_tensor(part).dim(n_axis);
  const int64_t k = parts.empty() ? 0 : const_tensor(parts.front()).dim(1 - n_axis);
  py::array out = new_array(DataType::kUint8, Shape{static_cast<int64_t>(panel_bytes(n, k, type))});
  const Tensor panel(out.mutable_data(), type, Shape{n, k});
  int64_t row = 0;
  for (const py::array& part : parts) {
    repack_panel(panel, const_tensor(part), row, row_major_nk);
    row += const_tensor(part).dim(n_axis);
  }
  return out;
}

py::array pack_panel_pairs(const std::vector<py::array>& parts) {
  int64_t n = 0;
  for (const py::array& part : parts) n += const_tensor(part).dim(0);
  const int64_t k = parts.empty() ? 0 : const_tensor(parts.front()).dim(1);
  py::array out = new_array(DataType::kUint8, Shape{static_cast<int64_t>(panel_pairs_bytes(n, k))});
  const Tensor panel(out.mutable_data(), DataType::kInt8, Shape{n, k});
  int64_t row = 0;
  for (const py::array& part : parts) {
    repack_panel_pairs(panel, const_tensor(part), row);
    row += const_tensor(part).dim(0);
  }
  return out;
}

// The bytes of a panel as a weight of n rows; their count is what the caller's n and k say.
ConstTensor panel_tensor(const py::array& bytes, DataType dtype, int64_t n, int64_t k,
                         size_t expected) {
  FLEXQ_FT_CHECK_EQ(static_cast<size_t>(bytes.nbytes()), expected, "bytes of a panel [", n, ", ", k,
                    "] of ", dtype);
  return ConstTensor(bytes.data(), dtype, Shape{n, k});
}

py::array gemm_float(const py::array& x, const py::array& panel, int64_t n, int64_t k,
                     const std::string& dtype, const py::object& bias) {
  const DataType type = dtype_named(dtype);
  const ConstTensor in = const_tensor(x);
  py::array y = new_array(DataType::kFp32, Shape{in.dim(0), n});
  invokeGemmFloat(mutable_tensor(y), in, panel_tensor(panel, type, n, k, panel_bytes(n, k, type)),
                  optional_tensor(bias), {});
  return y;
}

py::array gemm_w8a16(const py::array& x, const py::array& panel, int64_t n, int64_t k,
                     const py::array& scale, const py::object& bias) {
  const ConstTensor in = const_tensor(x);
  const size_t bytes = panel_bytes(n, k, DataType::kInt8);
  py::array y = new_array(DataType::kFp32, Shape{in.dim(0), n});
  invokeGemmW8A16(mutable_tensor(y), in, panel_tensor(panel, DataType::kInt8, n, k, bytes),
                  const_tensor(scale), optional_tensor(bias), {});
  return y;
}

py::array gemm_w8a8(const py::array& codes, const py::array& act_scale, const py::array& panel,
                    int64_t n, int64_t k, const py::array& scale, const py::object& bias) {
  const ConstTensor in = const_tensor(codes);
  const size_t bytes = panel_pairs_bytes(n, k);
  py::array y = new_array(DataType::kFp32, Shape{in.dim(0), n});
  invokeGemmW8A8(mutable_tensor(y), in, const_tensor(act_scale),
                 panel_tensor(panel, DataType::kInt8, n, k, bytes), const_tensor(scale),
                 optional_tensor(bias), {});
  return y;
}

void set_threads(int threads) {
  FLEXQ_FT_CHECK_LE(1, threads, "threads");
#ifdef _OPENMP
  omp_set_num_threads(threads);
#endif
}

void bind_rows(py::module_& ops) {
  ops.def("rms_norm", &rms_norm, py::arg("x"), py::arg("weight"), py::arg("eps"));
  ops.def("layer_norm", &layer_norm, py::arg("x"), py::arg("weight"), py::arg("bias"),
          py::arg("eps"));
  ops.def("residual_norm", &residual_norm, py::arg("residual"), py::arg("y"), py::kw_only(),
          py::arg("act_scale") = py::none(), py::arg("weight_scale") = py::none(),
          py::arg("bias") = py::none(), py::arg("weight"), py::arg("norm_bias") = py::none(),
          py::arg("eps"), py::arg("act_bits") = 16, py::arg("group") = 0,
          "residual is changed in place. Returns (values, codes or None, scales or None).");
  ops.def("finish_product", &finish_product, py::arg("y"), py::kw_only(),
          py::arg("act_scale") = py::none(), py::arg("weight_scale") = py::none(),
          py::arg("bias") = py::none());
  ops.def("quantize", &quantize, py::arg("x"), py::kw_only(), py::arg("act_bits"), py::arg("group"),
          "Returns (codes, scales).");
  ops.def("fused_activation", &fused_activation, py::arg("x"), py::arg("name"), py::kw_only(),
          py::arg("dtype"), py::arg("gated"), py::arg("act_scale") = py::none(),
          py::arg("weight_scale") = py::none(), py::arg("bias") = py::none(),
          py::arg("act_bits") = 16, py::arg("group") = 0,
          "Returns (values, codes or None, scales or None).");
  ops.def("add_residual", &add_residual, py::arg("x"), py::arg("y"), py::arg("bias") = py::none(),
          "x = round(x + (y + bias)), in place.");
  ops.def("activation", &activation, py::arg("x"), py::arg("name"), py::kw_only(), py::arg("dtype"),
          py::arg("gated"));
  ops.def("embedding", &embedding, py::arg("ids"), py::arg("table"),
          py::arg("positions") = py::none(), py::arg("positional") = py::none());
}

void bind_attention(py::module_& ops) {
  ops.def("rope_table", &rope_table, py::kw_only(), py::arg("head_dim"), py::arg("positions"),
          py::arg("theta") = 10000.0, py::arg("type") = "default", py::arg("factor") = 1.0,
          py::arg("low_freq_factor") = 1.0, py::arg("high_freq_factor") = 4.0,
          py::arg("original_max_positions") = 8192);
  ops.def("rope_append", &rope_append, py::arg("qkv"), py::kw_only(),
          py::arg("act_scale") = py::none(), py::arg("weight_scale") = py::none(),
          py::arg("bias") = py::none(), py::arg("heads"), py::arg("k"), py::arg("v"),
          py::arg("rope") = py::none(), py::arg("positions"), py::arg("offsets"),
          py::arg("context"), py::arg("pages"),
          "Returns q; k and v, [pages, kv_heads, 16, head_dim], are changed in place.");
  ops.def("fused_attention", &fused_attention, py::arg("q"), py::kw_only(), py::arg("k"),
          py::arg("v"), py::arg("positions"), py::arg("offsets"), py::arg("context"),
          py::arg("pages"), py::arg("act_bits"), py::arg("group"),
          "Returns (values, codes or None, scales or None).");
  ops.def("attention", &attention, py::arg("q"), py::kw_only(), py::arg("k"), py::arg("v"),
          py::arg("positions"), py::arg("offsets"), py::arg("context"), py::arg("pages"));
}

void bind_gemm(py::module_& ops) {
  ops.def("pack_panel", &pack_panel, py::arg("parts"), py::kw_only(), py::arg("dtype"),
          py::arg("row_major_nk") = true,
          "Matrices [n, k], or [k, n] if not row_major_nk, below each other as one panel weight.");
  ops.def("pack_panel_pairs", &pack_panel_pairs, py::arg("parts"));
  ops.def("gemm_float", &gemm_float, py::arg("x"), py::arg("panel"), py::kw_only(), py::arg("n"),
          py::arg("k"), py::arg("dtype"), py::arg("bias") = py::none());
  ops.def("gemm_w8a16", &gemm_w8a16, py::arg("x"), py::arg("panel"), py::kw_only(), py::arg("n"),
          py::arg("k"), py::arg("scale"), py::arg("bias") = py::none());
  ops.def("gemm_w8a8", &gemm_w8a8, py::arg("codes"), py::arg("act_scale"), py::arg("panel"),
          py::kw_only(), py::arg("n"), py::arg("k"), py::arg("scale"),
          py::arg("bias") = py::none());
}

}  // namespace

void bind_ops(py::module_& module) {
  py::module_ ops = module.def_submodule(
      "ops", "The runtime's ops on NumPy arrays, for tests. 16-bit floats: float16, bfloat16.");
  bind_rows(ops);
  bind_attention(ops);
  bind_gemm(ops);
  bind_columns(ops);
  bind_sampling(ops);
  bind_weight_ops(ops);
  bind_skinny_gemm(ops);
  ops.def("use_device", &use_device, py::arg("name"),
          "Where the ops of this module run from now on: \"cpu\" or \"cuda\".");
  ops.def("device", &device_in_use);
  ops.def("set_threads", &set_threads, py::arg("threads"), "Threads of the calling thread's ops.");
}

}  // namespace flexq_ft
