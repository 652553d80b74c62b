// flexq_ft._native.kernels: the FlexQ library on NumPy arrays. Shapes, dtypes and errors are
// documented in flexq_ft.kernels, which is the face for users.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "flexq_kernels/cpu/isa.h"
#include "flexq_kernels/gemm.h"
#include "flexq_kernels/pack.h"
#include "flexq_kernels/quantize.h"
#include "ft/binding/module.h"
#include "ft/core/check.h"
#include "ft/core/error.h"
#include "ft/core/library_errors.h"

namespace py = pybind11;

namespace flexq_ft {

namespace {

namespace fk = ::flexq_kernels;
using detail::join;

[[noreturn]] void refuse(const std::string& message, std::string hint = {}) {
  throw Error(ErrorKind::kConfig, message, {}, std::move(hint));
}

// Runs library code without the GIL; its argument errors become ConfigError.
template <typename Call>
auto run(const Call& call) {
  const py::gil_scoped_release release;
  return with_library_errors(ErrorKind::kConfig, call);
}

std::string dtype_name(const py::array& array) { return py::str(array.dtype()); }

std::string shape_text(const py::array& array) {
  std::string text = "[";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(array.shape(i));
  }
  return text + "]";
}

// Not py::array as a parameter: of a list, or a tensor of another library, pybind11's own error
// would print all operands.
py::array ndarray(const py::object& object, const char* name) {
  if (py::isinstance<py::array>(object)) return py::reinterpret_borrow<py::array>(object);
  refuse(join(name, " is a ", std::string(py::str(py::type::of(object).attr("__name__"))),
              ", expected a NumPy array"));
}

// A C-contiguous array of exactly this dtype and shape (-1: any extent).
py::array take(const py::object& object, const char* name, const char* dtype,
               const std::vector<int64_t>& shape) {
  const py::array array = ndarray(object, name);
  if (dtype_name(array) != dtype) {
    refuse(join(name, " is ", dtype_name(array), shape_text(array), ", expected ", dtype));
  }
  bool fits = array.ndim() == static_cast<py::ssize_t>(shape.size());
  for (size_t i = 0; fits && i < shape.size(); ++i) {
    fits = shape[i] < 0 || array.shape(static_cast<py::ssize_t>(i)) == shape[i];
  }
  if (!fits) {
    std::string expected;
    for (int64_t extent : shape) {
      expected += (expected.empty() ? "" : ", ") + (extent < 0 ? "*" : std::to_string(extent));
    }
    refuse(join(name, " has shape ", shape_text(array), ", expected [", expected, "]"));
  }
  return py::array::ensure(array, py::array::c_style);
}

fk::FloatType float_type(const py::array& x, const char* name) {
  const std::string dtype = dtype_name(x);
  if (dtype == "float32") return fk::FloatType::kFp32;
  if (dtype == "float16") return fk::FloatType::kFp16;
  if (dtype == "bfloat16") return fk::FloatType::kBf16;
  refuse(join(name, " is ", dtype, ", expected float32, float16 or bfloat16"));
}

template <typename T>
T* data(py::array& array) {
  return static_cast<T*>(array.mutable_data());
}

template <typename T>
const T* data(const py::array& array) {
  return static_cast<const T*>(array.data());
}

void check_fault(const fk::WeightFault& fault, const char* to) {
  if (!fault) return;
  throw Error(ErrorKind::kWeight,
              join("cannot quantise to ", to, ": value ", fault.value, " at row ", fault.row,
                   ", column ", fault.column),
              "weights must be finite, with a scale that fits its type",
              "check the source checkpoint");
}

std::pair<py::array, py::array> quantize_weight_int6(const py::object& weight) {
  const py::array w = take(weight, "w", "float32", {-1, -1});
  const int64_t n = w.shape(0), k = w.shape(1);
  py::array codes(py::dtype("int8"), {n, k});
  py::array scales(py::dtype("float16"), {n, fk::group_count(k)});
  const fk::WeightFault fault = run([&] {
    return fk::quantize_weight_int6(data<int8_t>(codes), data<uint16_t>(scales), data<float>(w), n,
                                    k);
  });
  check_fault(fault, "int6");
  return {codes, scales};
}

std::pair<py::array, py::array> quantize_weight_int8(const py::object& weight) {
  const py::array w = take(weight, "w", "float32", {-1, -1});
  const int64_t n = w.shape(0), k = w.shape(1);
  py::array codes(py::dtype("int8"), {n, k});
  py::array scales(py::dtype("float32"), std::vector<int64_t>{n});
  const fk::WeightFault fault = run([&] {
    return fk::quantize_weight_int8(data<int8_t>(codes), data<float>(scales), data<float>(w), n, k);
  });
  check_fault(fault, "int8");
  return {codes, scales};
}

std::pair<py::array, py::array> quantize_activations(const py::object& input, int act_bits,
                                                     int64_t group) {
  const py::array given = ndarray(input, "x");
  const fk::FloatType type = float_type(given, "x");
  const py::array x = take(given, "x", dtype_name(given).c_str(), {-1, -1});
  const int64_t m = x.shape(0), k = x.shape(1);
  if (group < 1 || group > fk::kMaxExtent) {
    refuse(join("group ", group, ": a group holds 1 … ", fk::kMaxExtent, " values"));
  }
  const int64_t groups = (k + group - 1) / group;
  py::array codes(py::dtype("int8"), {m, groups * group});
  py::array scales(py::dtype("float32"), {m, groups});
  run([&] {
    fk::quantize_activations(data<int8_t>(codes), data<float>(scales), x.data(), type, m, k, group,
                             act_bits);
  });
  return {codes, scales};
}

void check_extents(int64_t n, int64_t k) {
  if (n < 0 || n > fk::kMaxExtent || k < 1 || k > fk::kMaxExtent) {
    refuse(join("weight [", n, ", ", k, "]: n must be 0 … ", fk::kMaxExtent, ", k 1 … ",
                fk::kMaxExtent));
  }
}

int64_t packed_bytes(int64_t n, int64_t k) {
  check_extents(n, k);
  return fk::packed_bytes(n, k);
}

py::array pack_int6(const py::object& input) {
  const py::array codes = take(input, "codes", "int8", {-1, -1});
  const int64_t n = codes.shape(0), k = codes.shape(1);
  py::array packed(py::dtype("uint8"), std::vector<int64_t>{packed_bytes(n, k)});
  const bool in_range = run([&] {
    const int8_t* values = data<int8_t>(codes);
    for (int64_t i = 0; i < n * k; ++i) {
      if (values[i] < -32 || values[i] > 31) return false;
    }
    fk::pack_int6(data<uint8_t>(packed), values, n, k);
    return true;
  });
  if (!in_range) refuse(join("codes [", n, ", ", k, "] outside -32 … 31 do not fit six bits"));
  return packed;
}

py::array unpack_int6(const py::object& input, int64_t n, int64_t k) {
  const py::array packed = take(input, "packed", "uint8", {packed_bytes(n, k)});
  py::array codes(py::dtype("int8"), {n, k});
  run([&] { fk::unpack_int6(data<int8_t>(codes), data<uint8_t>(packed), n, k); });
  return codes;
}

py::array tile_scales(const py::object& input) {
  const py::array scales = take(input, "scales", "float16", {-1, -1});
  const int64_t groups = scales.shape(0), n = scales.shape(1);
  py::array tiled(py::dtype("float16"), {fk::row_tiles(n), groups, int64_t{fk::kTileRows}});
  run([&] {
    fk::tile_scales(data<uint16_t>(tiled), data<uint16_t>(scales), n, groups * fk::kGroupSize);
  });
  return tiled;
}

py::array group_sums(const py::object& a_codes, const py::object& weight, int64_t n, int64_t k) {
  const py::array packed = take(weight, "packed", "uint8", {packed_bytes(n, k)});
  const int64_t groups = fk::group_count(k);
  const py::array a = take(a_codes, "a_codes", "int8", {-1, groups * fk::kGroupSize});
  const fk::GemmProblem problem{a.shape(0), n, k, 8};
  py::array sums(py::dtype("int32"), {problem.m, n, groups});
  run([&] {
    fk::group_sums_w6ax(data<int32_t>(sums), data<int8_t>(a), data<uint8_t>(packed), problem);
  });
  return sums;
}

// The operands that both GEMMs share, checked against n and k.
struct Weight {
  py::array packed, scales, bias;

  Weight(const py::object& packed_codes, const py::object& weight_scales,
         const std::optional<py::object>& bias_values, int64_t n, int64_t k)
      : packed(take(packed_codes, "packed", "uint8", {packed_bytes(n, k)})),
        scales(take(weight_scales, "scales", "float16", {fk::group_count(k), n})) {
    if (bias_values) bias = take(*bias_values, "bias", "float32", {n});
  }

  fk::PackedWeight view() const { return {data<uint8_t>(packed), data<uint16_t>(scales)}; }
  const float* bias_data() const { return bias.size() > 0 ? data<float>(bias) : nullptr; }
};

py::array gemm_w6ax(const py::object& a_codes, const py::object& a_scales, const py::object& packed,
                    const py::object& scales, int64_t n, int64_t k,
                    const std::optional<py::object>& bias) {
  const Weight weight(packed, scales, bias, n, k);
  const int64_t groups = fk::group_count(k);
  const py::array codes = take(a_codes, "a_codes", "int8", {-1, groups * fk::kGroupSize});
  const py::array act = take(a_scales, "a_scales", "float32", {codes.shape(0), groups});
  const fk::GemmProblem problem{codes.shape(0), n, k, 8};
  py::array y(py::dtype("float32"), {problem.m, n});
  const fk::QuantizedActivations a{data<int8_t>(codes), data<float>(act)};
  const fk::PackedWeight w = weight.view();
  run([&] { fk::gemm_w6ax(data<float>(y), a, w, weight.bias_data(), problem); });
  return y;
}

py::array gemm_w6a16(const py::object& input, const py::object& packed, const py::object& scales,
                     int64_t n, int64_t k, const std::optional<py::object>& bias) {
  const Weight weight(packed, scales, bias, n, k);
  const py::array given = ndarray(input, "x");
  const fk::FloatType type = float_type(given, "x");
  const py::array x = take(given, "x", dtype_name(given).c_str(), {-1, k});
  const fk::GemmProblem problem{x.shape(0), n, k, 16};
  py::array y(py::dtype("float32"), {problem.m, n});
  const fk::PackedWeight w = weight.view();
  run([&] { fk::gemm_w6a16(data<float>(y), x.data(), type, w, weight.bias_data(), problem); });
  return y;
}

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (fk::Isa isa : fk::available_isas()) names.emplace_back(fk::to_string(isa));
  return names;
}

void set_isa(const std::string& name) {
  for (fk::Isa isa : fk::available_isas()) {
    if (name == fk::to_string(isa) && fk::set_isa(isa)) return;
  }
  std::string names;
  for (const std::string& available : isa_names()) names += (names.empty() ? "" : ", ") + available;
  refuse(join("this CPU has no instruction set \"", name, "\""), join("one of: ", names));
}

}  // namespace

void bind_kernels(py::module_& module) {
  py::module_ m = module.def_submodule("kernels", "FlexQ's kernels; see flexq_ft.kernels.");
  m.def("isas", &isa_names);
  m.def("active_isa", [] { return std::string(fk::to_string(fk::active_isa())); });
  m.def("set_isa", &set_isa, py::arg("name"));
  m.def("quantize_weight_int6", &quantize_weight_int6, py::arg("w"));
  m.def("quantize_weight_int8", &quantize_weight_int8, py::arg("w"));
  m.def("quantize_activations", &quantize_activations, py::arg("x"), py::kw_only(),
        py::arg("act_bits"), py::arg("group") = fk::kGroupSize);
  m.def("packed_bytes", &packed_bytes, py::arg("n"), py::arg("k"));
  m.def("pack_int6", &pack_int6, py::arg("codes"));
  m.def("unpack_int6", &unpack_int6, py::arg("packed"), py::arg("n"), py::arg("k"));
  m.def("tile_scales", &tile_scales, py::arg("scales"));
  m.def("group_sums", &group_sums, py::arg("a_codes"), py::arg("packed"), py::arg("n"),
        py::arg("k"));
  m.def("gemm_w6ax", &gemm_w6ax, py::arg("a_codes"), py::arg("a_scales"), py::arg("packed"),
        py::arg("scales"), py::arg("n"), py::arg("k"), py::arg("bias") = py::none());
  m.def("gemm_w6a16", &gemm_w6a16, py::arg("x"), py::arg("packed"), py::arg("scales"), py::arg("n"),
        py::arg("k"), py::arg("bias") = py::none());
  bind_linear(m);
}

}  // namespace flexq_ft
