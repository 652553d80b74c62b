// flexq_ft._native.ops: the products of few tokens on a GPU.
#include <pybind11/stl.h>

#include <array>
#include <optional>

#include "ft/binding/arrays.h"
#include "ft/binding/module.h"
#include "ft/binding/staging.h"
#include "ft/core/cuda.h"
#include "ft/kernels/skinny_gemm.h"

namespace py = pybind11;

namespace flexq_ft {

namespace {

Scheme scheme_named(const std::string& name) {
  for (const Scheme scheme : {Scheme::kFloat, Scheme::kW8A16, Scheme::kW8A8}) {
    if (name == to_string(scheme)) return scheme;
  }
  throw Error(ErrorKind::kConfig, "unknown scheme '" + name + "'", {}, "use fp16, w8a16 or w8a8");
}

py::tuple tuple_of(const gpu::SkinnyConfig& config) {
  return py::make_tuple(config.rows, config.warps, config.stages);
}

std::vector<py::tuple> skinny_configs(const std::string& scheme, const std::string& dtype,
                                      int64_t m, int64_t n, int64_t k) {
  std::vector<py::tuple> out;
  for (const auto& config :
       gpu::skinny_configs({scheme_named(scheme), dtype_named(dtype), m, n, k})) {
    out.push_back(tuple_of(config));
  }
  return out;
}

py::tuple skinny_default(const std::string& scheme, const std::string& dtype, int64_t m, int64_t n,
                         int64_t k, int multiprocessors) {
  return tuple_of(
      gpu::skinny_default({scheme_named(scheme), dtype_named(dtype), m, n, k}, multiprocessors));
}

py::array skinny_gemm(const py::array& x, const py::array& w, const std::string& scheme_name,
                      const std::optional<std::array<int, 3>>& config) {
  Staging stage;
  const Scheme scheme = scheme_named(scheme_name);
  const ConstTensor in = stage.in(x), weight = stage.in(w);
  FLEXQ_FT_CHECK(in.rank() == 2 && weight.rank() == 2, "x ", in.shape(), " w ", weight.shape());
  py::array y = new_array(scheme == Scheme::kW8A8 ? DataType::kInt32 : DataType::kFp32,
                          Shape{in.dim(0), weight.dim(0)});
  gpu::SkinnyConfig chosen;
  if (config.has_value()) {
    chosen = {(*config)[0], (*config)[1], (*config)[2]};
  } else {
    const auto device = cuda::device_info(cuda::current_device());
    chosen = gpu::skinny_default({scheme, in.dtype(), in.dim(0), weight.dim(0), in.dim(1)},
                                 device.multiprocessors);
  }
  gpu::invokeSkinnyGemm(stage.inout(y), in, weight, scheme, chosen, stage.stream());
  stage.finish();
  return y;
}

}  // namespace

void bind_skinny_gemm(py::module_& ops) {
  ops.def(
      "skinny_gemm", &skinny_gemm, py::arg("x"), py::arg("w"), py::kw_only(), py::arg("scheme"),
      py::arg("config") = py::none(),
      "x [m, k] · wᵀ, w [n, k], of up to 64 tokens, on a GPU; config is (rows, warps, stages).");
  ops.def("skinny_configs", &skinny_configs, py::kw_only(), py::arg("scheme"), py::arg("dtype"),
          py::arg("m"), py::arg("n"), py::arg("k"),
          "All (rows, warps, stages) of a problem; empty if skinny_gemm does not take it.");
  ops.def("skinny_default", &skinny_default, py::kw_only(), py::arg("scheme"), py::arg("dtype"),
          py::arg("m"), py::arg("n"), py::arg("k"), py::arg("multiprocessors"));
}

}  // namespace flexq_ft
