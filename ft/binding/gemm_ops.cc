// ops: the CPU's panels and products, on NumPy arrays.
#include <pybind11/stl.h>

#include "ft/binding/arrays.h"
#include "ft/binding/module.h"
#include "ft/kernels/gemm.h"

namespace py = pybind11;

namespace flexq_ft {

namespace {

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

}  // namespace

void bind_gemm_ops(py::module_& ops) {
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

}  // namespace flexq_ft
