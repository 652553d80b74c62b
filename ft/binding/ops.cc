// flexq_ft._native.ops: the ops of ft/kernels on NumPy arrays, for tests and benchmarks.
#include <pybind11/stl.h>

#include "ft/binding/arrays.h"
#include "ft/binding/module.h"
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

py::array rms_norm(const py::array& x, const py::array& weight, float eps) {
  const ConstTensor in = const_tensor(x);
  py::array out = new_array(in.dtype(), in.shape());
  invokeRmsNorm(mutable_tensor(out), in, const_tensor(weight), eps, {});
  return out;
}

py::array layer_norm(const py::array& x, const py::array& weight, const py::array& bias,
                     float eps) {
  const ConstTensor in = const_tensor(x);
  py::array out = new_array(in.dtype(), in.shape());
  invokeLayerNorm(mutable_tensor(out), in, const_tensor(weight), const_tensor(bias), eps, {});
  return out;
}

void add_residual(py::array x, const py::array& y, const py::object& bias) {
  invokeAddResidual(mutable_tensor(x), const_tensor(y), optional_tensor(bias), {});
}

Activation activation_named(const std::string& name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu") return Activation::kGelu;
  throw Error(ErrorKind::kConfig, "unknown activation '" + name + "'", {},
              "use silu, relu or gelu");
}

py::array activation(const py::array& x, const std::string& name, const std::string& dtype,
                     bool gated) {
  const ConstTensor in = const_tensor(x);
  FLEXQ_FT_CHECK_EQ(in.rank(), 2, "activation: x ", in.shape());
  const Shape shape{in.dim(0), gated ? in.dim(1) / 2 : in.dim(1)};
  py::array out = new_array(dtype_named(dtype), shape);
  (gated ? invokeGatedActivation : invokeActivation)(mutable_tensor(out), in,
                                                     activation_named(name), {});
  return out;
}

py::array embedding(const py::array& ids, const py::array& table, const py::object& positions,
                    const py::object& positional) {
  const ConstTensor rows = const_tensor(table);
  py::array out = new_array(rows.dtype(), Shape{const_tensor(ids).count(), rows.dim(1)});
  invokeEmbedding(mutable_tensor(out), const_tensor(ids), rows, optional_tensor(positions),
                  optional_tensor(positional), {});
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

RaggedBatch ragged_batch(const py::array& positions, const py::array& offsets,
                         const py::array& context, const py::array& pages) {
  RaggedBatch batch;
  batch.positions = const_tensor(positions);
  batch.offsets = const_tensor(offsets);
  batch.context = const_tensor(context);
  batch.pages = const_tensor(pages);
  return batch;
}

py::array rope_append(const py::array& qkv, int64_t heads, py::array k, py::array v,
                      const py::object& rope, const py::array& positions, const py::array& offsets,
                      const py::array& context, const py::array& pages) {
  const KvPages kv{mutable_tensor(k), mutable_tensor(v)};
  const ConstTensor in = const_tensor(qkv);
  py::array q = new_array(kv.k.dtype(), Shape{in.dim(0), heads * kv.k.dim(3)});
  invokeRopeAppend(mutable_tensor(q), kv, in, optional_tensor(rope),
                   ragged_batch(positions, offsets, context, pages), {});
  return q;
}

py::array attention(const py::array& q, py::array k, py::array v, const py::array& positions,
                    const py::array& offsets, const py::array& context, const py::array& pages) {
  const ConstTensor in = const_tensor(q);
  py::array out = new_array(in.dtype(), in.shape());
  invokeAttention(mutable_tensor(out), in, KvPages{mutable_tensor(k), mutable_tensor(v)},
                  ragged_batch(positions, offsets, context, pages), {});
  return out;
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
  ops.def("rope_append", &rope_append, py::arg("qkv"), py::kw_only(), py::arg("heads"),
          py::arg("k"), py::arg("v"), py::arg("rope") = py::none(), py::arg("positions"),
          py::arg("offsets"), py::arg("context"), py::arg("pages"),
          "Returns q; k and v, [pages, kv_heads, 16, head_dim], are changed in place.");
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
  bind_sampling(ops);
  ops.def("set_threads", &set_threads, py::arg("threads"), "Threads of the calling thread's ops.");
}

}  // namespace flexq_ft
