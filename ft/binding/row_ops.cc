// ops: norm, residual, activation, embedding, quantise, on NumPy arrays.
#include "ft/binding/module.h"
#include "ft/binding/op_arrays.h"
#include "ft/kernels/activation.h"
#include "ft/kernels/embedding.h"
#include "ft/kernels/norm.h"
#include "ft/kernels/residual.h"

namespace py = pybind11;

namespace flexq_ft {

namespace {

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

py::tuple residual_norm(py::array residual, const py::object& y, const py::object& act_scale,
                        const py::object& weight_scale, const py::object& bias,
                        const py::array& weight, const py::object& norm_bias, float eps,
                        int act_bits, int64_t group, float static_scale) {
  Staging stage;
  const Tensor x = stage.inout(residual);
  InputArrays out(stage, x.dtype(), x.dim(0), x.dim(1), act_bits, group, static_scale);
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

py::tuple quantize(const py::array& x, int act_bits, int64_t group, float static_scale) {
  Staging stage;
  const ConstTensor in = stage.in(x);
  InputArrays out(stage, in.dtype(), in.dim(0), in.dim(1), act_bits, group, static_scale);
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
                           const py::object& bias, int act_bits, int64_t group,
                           float static_scale) {
  Staging stage;
  const Product product = product_of(stage, x, act_scale, weight_scale, bias);
  FLEXQ_FT_CHECK_EQ(product.values.rank(), 2, "activation: x ", product.values.shape());
  const int64_t columns = product.values.dim(1);
  InputArrays out(stage, dtype_named(dtype), product.values.dim(0), gated ? columns / 2 : columns,
                  act_bits, group, static_scale);
  const Activation activation = activation_named(name);
  if (gated) {
    invokeGatedActivation(out.input, product, {}, activation, stage.stream());
  } else {
    invokeActivation(out.input, product, activation, stage.stream());
  }
  stage.finish();
  return out.tuple();
}

py::array activation(const py::array& x, const std::string& name, const std::string& dtype,
                     bool gated) {
  const py::tuple made =
      fused_activation(x, name, dtype, gated, py::none(), py::none(), py::none(), 16, 0, 0.0f);
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

}  // namespace

void bind_row_ops(py::module_& ops) {
  ops.def("rms_norm", &rms_norm, py::arg("x"), py::arg("weight"), py::arg("eps"));
  ops.def("layer_norm", &layer_norm, py::arg("x"), py::arg("weight"), py::arg("bias"),
          py::arg("eps"));
  ops.def("residual_norm", &residual_norm, py::arg("residual"), py::arg("y"), py::kw_only(),
          py::arg("act_scale") = py::none(), py::arg("weight_scale") = py::none(),
          py::arg("bias") = py::none(), py::arg("weight"), py::arg("norm_bias") = py::none(),
          py::arg("eps"), py::arg("act_bits") = 16, py::arg("group") = 0,
          py::arg("static_scale") = 0.0f,
          "residual is changed in place. Returns (values, codes or None, scales or None).");
  ops.def("finish_product", &finish_product, py::arg("y"), py::kw_only(),
          py::arg("act_scale") = py::none(), py::arg("weight_scale") = py::none(),
          py::arg("bias") = py::none());
  ops.def("quantize", &quantize, py::arg("x"), py::kw_only(), py::arg("act_bits"), py::arg("group"),
          py::arg("static_scale") = 0.0f, "Returns (codes, scales).");
  ops.def("fused_activation", &fused_activation, py::arg("x"), py::arg("name"), py::kw_only(),
          py::arg("dtype"), py::arg("gated"), py::arg("act_scale") = py::none(),
          py::arg("weight_scale") = py::none(), py::arg("bias") = py::none(),
          py::arg("act_bits") = 16, py::arg("group") = 0, py::arg("static_scale") = 0.0f,
          "Returns (values, codes or None, scales or None).");
  ops.def("add_residual", &add_residual, py::arg("x"), py::arg("y"), py::arg("bias") = py::none(),
          "x = round(x + (y + bias)), in place.");
  ops.def("activation", &activation, py::arg("x"), py::arg("name"), py::kw_only(), py::arg("dtype"),
          py::arg("gated"));
  ops.def("embedding", &embedding, py::arg("ids"), py::arg("table"),
          py::arg("positions") = py::none(), py::arg("positional") = py::none());
}

}  // namespace flexq_ft
