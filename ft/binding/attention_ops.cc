// ops: RoPE with the append to the cache, and attention, on NumPy arrays.
#include <algorithm>
#include <cstring>

#include "ft/binding/module.h"
#include "ft/binding/op_arrays.h"
#include "ft/core/buffer.h"
#include "ft/kernels/attention.h"
#include "ft/kernels/rope.h"

namespace py = pybind11;

namespace flexq_ft {

namespace {

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
      attention_workspace_bytes({batch.decodes, in.dim(1) / head_dim, kv.k.dim(1), head_dim,
                                 batch.pages.dim(1) * kPageTokens},
                                stage.device()));
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

}  // namespace

void bind_attention_ops(py::module_& ops) {
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

}  // namespace flexq_ft
