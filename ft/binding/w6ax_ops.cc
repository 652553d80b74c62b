// flexq_ft._native.ops: the products of six-bit weights on a GPU, as the runtime does them.
#include <pybind11/stl.h>

#include "flexq_kernels/pack.h"
#include "ft/binding/arrays.h"
#include "ft/binding/module.h"
#include "ft/binding/staging.h"
#include "ft/core/check.h"
#include "ft/kernels/repack.h"
#include "ft/kernels/w6ax_gemm.h"

namespace py = pybind11;

namespace flexq_ft {

namespace {

namespace fk = ::flexq_kernels;

// One for all tests; never deleted, since the driver may be gone at exit.
W6axGemm& w6ax() {
  static W6axGemm* gemm = make_w6ax_gemm().release();
  return *gemm;
}

// Of x's values, which on a GPU are the caller's own copy.
LinearInput quantized(Staging& stage, ConstTensor x, const fk::GemmProblem& problem) {
  LinearInput out;
  out.values = Tensor(const_cast<void*>(x.raw()), x.dtype(), x.shape(), x.device());
  out.dtype = x.dtype();
  if (problem.act_bits == 16) return out;
  const int64_t groups = fk::group_count(problem.k);
  out.group = fk::kGroupSize;
  out.act_bits = problem.act_bits;
  out.codes = stage.scratch(DataType::kInt8, {problem.m, groups * out.group});
  out.scale_stride = fk::gpu::scale_stride_of(problem.m);
  out.scales = stage.scratch(DataType::kFp32, {groups, out.scale_stride});
  out.order = w6ax().code_order(problem);
  quantize_values(out, stage.stream());
  return out;
}

py::array gpu_w6ax(const py::array& x, const py::array& codes, const py::array& scales, int64_t n,
                   int act_bits, const py::object& bias, bool rounded) {
  Staging stage;
  const ConstTensor in = stage.in(x);
  const ConstTensor on_disk = stage.in(scales);
  FLEXQ_FT_CHECK_EQ(in.rank(), 2, "x ", in.shape());
  const fk::GemmProblem problem{in.dim(0), n, in.dim(1), act_bits};
  FLEXQ_FT_CHECK_EQ(codes.nbytes(), fk::packed_bytes(n, problem.k), "codes of ", problem);
  const Tensor tiled =
      stage.scratch(DataType::kFp16, {fk::tiled_scale_count(problem.n, problem.k)});
  invokeTileScales(tiled, on_disk, problem.k, stage.stream());
  const fk::gpu::Weight w{static_cast<const uint8_t*>(stage.in(codes).raw()),
                          static_cast<const uint16_t*>(tiled.raw())};
  py::array y = new_array(rounded ? in.dtype() : DataType::kFp32, Shape{problem.m, problem.n});
  w6ax().run(stage.inout(y), quantized(stage, in, problem), w, stage.optional_in(bias), problem,
             std::nullopt, stage.stream());
  stage.finish();
  return y;
}

std::string gpu_w6ax_choice(int64_t m, int64_t n, int64_t k, int act_bits) {
  return w6ax().choice({m, n, k, act_bits});
}

}  // namespace

void bind_w6ax_ops(py::module_& ops) {
  ops.def("gpu_w6ax", &gpu_w6ax, py::arg("x"), py::arg("codes"), py::arg("scales"), py::arg("n"),
          py::kw_only(), py::arg("act_bits"), py::arg("bias") = py::none(),
          py::arg("rounded") = false,
          "x [m, k] times a six-bit weight [n, k] transposed, on the GPU; codes packed, scales "
          "[groups, n]. act_bits 6 or 8: x is quantised first.");
  ops.def("gpu_w6ax_choice", &gpu_w6ax_choice, py::kw_only(), py::arg("m"), py::arg("n"),
          py::arg("k"), py::arg("act_bits"));
}

}  // namespace flexq_ft
