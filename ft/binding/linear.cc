// flexq_ft._native.kernels: the linear layer of six-bit weights on tensors of other libraries; the
// face for users is flexq_ft.kernels.linear.
#include <optional>
#include <vector>

#include "flexq_kernels/pack.h"
#include "flexq_kernels/quantize.h"
#include "ft/binding/borrowed_array.h"
#include "ft/binding/linear.h"
#include "ft/binding/module.h"
#include "ft/core/check.h"
#include "ft/core/dtype.h"
#include "ft/core/error.h"
#include "ft/core/library_errors.h"

namespace py = pybind11;

namespace flexq_ft {

namespace fk = ::flexq_kernels;

int64_t linear_scratch_bytes(const fk::GemmProblem& problem) {
  if (problem.act_bits == 16) return 0;
  const int64_t groups = fk::group_count(problem.k);
  return problem.m * groups * fk::kGroupSize + groups * fk::gpu::scale_stride_of(problem.m) * 4;
}

namespace {

fk::FloatType float_type(const BorrowedArray& x, const char* name) {
  if (x.dtype() == "float32") return fk::FloatType::kFp32;
  if (x.dtype() == "float16") return fk::FloatType::kFp16;
  if (x.dtype() == "bfloat16") return fk::FloatType::kBf16;
  throw Error(ErrorKind::kConfig,
              detail::join(name, " is ", x.text(), ", expected float32, float16 or bfloat16"));
}

template <typename T>
void round_to(void* to, const std::vector<float>& from) {
  for (size_t i = 0; i < from.size(); ++i) static_cast<T*>(to)[i] = from_float<T>(from[i]);
}

// The library's argument errors are the caller's.
template <typename Call>
auto run(const Call& call) {
  return with_library_errors(ErrorKind::kConfig, call);
}

// At least so many bytes beside x; null where there are to be none.
void* memory(const py::object& object, const char* name, int64_t bytes, const BorrowedArray& x) {
  if (bytes == 0) return nullptr;
  if (object.is_none()) {
    throw Error(ErrorKind::kConfig, detail::join("linear needs ", name, " of ", bytes, " bytes"));
  }
  const BorrowedArray array(object, name);  // the caller's object keeps the memory
  array.expect("uint8", {-1}, x);
  if (array.extent(0) < bytes) {
    throw Error(ErrorKind::kConfig,
                detail::join(name, " is ", array.text(), ", expected ", bytes, " bytes or more"));
  }
  return array.data();
}

void linear(const py::object& y_object, const py::object& x_object, const py::object& codes_object,
            const py::object& scales_object, int64_t n, int64_t k, int act_bits,
            const py::object& bias_object, const py::object& scratch_object,
            const py::object& workspace_object, uintptr_t stream) {
  const BorrowedArray x(x_object, "x"), y(y_object, "y");
  const BorrowedArray codes(codes_object, "codes"), scales(scales_object, "scales");
  std::optional<BorrowedArray> bias;
  if (!bias_object.is_none()) bias.emplace(bias_object, "bias");

  LinearCall call;
  call.y.type = float_type(x, "x");
  x.expect(x.dtype(), {-1, k}, x);
  call.problem = {x.extent(0), n, k, act_bits};
  if (call.problem.m == 0) return;
  y.expect(x.dtype(), {call.problem.m, n}, x);
  codes.expect("uint8", {fk::packed_bytes(n, k)}, x);
  const int64_t groups = fk::group_count(k);
  if (x.on_gpu()) {
    scales.expect("float16", {fk::row_tiles(n), groups, fk::kTileRows}, x);
    call.scratch = memory(scratch_object, "scratch", linear_scratch_bytes(call.problem), x);
    call.workspace =
        memory(workspace_object, "workspace",
               run([&] { return linear_workspace_bytes(call.problem, x.device_index()); }), x);
  } else {
    scales.expect("float16", {groups, n}, x);
  }
  if (bias) bias->expect("float32", {n}, x);
  call.y.values = y.data();
  call.y.bias = bias ? bias->data<float>() : nullptr;
  call.x = x.data();
  call.codes = codes.data<uint8_t>();
  call.scales = scales.data<uint16_t>();
  call.stream = reinterpret_cast<void*>(stream);

  const py::gil_scoped_release release;
  run([&] { x.on_gpu() ? linear_gpu(call, x.device_index()) : linear_cpu(call); });
}

void dequantize(const py::object& values_object, const py::object& codes_object,
                const py::object& scales_object, int64_t n, int64_t k, uintptr_t stream) {
  const BorrowedArray values(values_object, "values");
  const BorrowedArray codes(codes_object, "codes"), scales(scales_object, "scales");
  LinearCall call;
  call.y.type = float_type(values, "values");
  call.problem = {0, n, k, 16};
  run([&] { call.problem.validate(); });
  values.expect(values.dtype(), {n, k}, codes);
  codes.expect("uint8", {fk::packed_bytes(n, k)}, codes);
  scales.expect("float16", {fk::row_tiles(n), fk::group_count(k), fk::kTileRows}, codes);
  call.y.values = values.data();
  call.codes = codes.data<uint8_t>();
  call.scales = scales.data<uint16_t>();
  call.stream = reinterpret_cast<void*>(stream);
  if (!codes.on_gpu()) {
    throw Error(ErrorKind::kConfig, "codes is " + codes.text() + ", expected an array of a GPU");
  }
  const py::gil_scoped_release release;
  run([&] { dequantize_gpu(call, codes.device_index()); });
}

int64_t scratch_bytes(int64_t m, int64_t n, int64_t k, int act_bits) {
  const fk::GemmProblem problem{m, n, k, act_bits};
  run([&] { problem.validate(); });
  return linear_scratch_bytes(problem);
}

int64_t workspace_bytes(int64_t m, int64_t n, int64_t k, int act_bits, int device) {
  return run([&] { return linear_workspace_bytes({m, n, k, act_bits}, device); });
}

// The product on the CPU, not yet rounded.
void multiply(float* y, const LinearCall& call) {
  const fk::GemmProblem& problem = call.problem;
  if (problem.act_bits == 16) {
    const fk::PackedWeight w{call.codes, call.scales};
    return fk::gemm_w6a16(y, call.x, call.y.type, w, call.y.bias, problem);
  }
  const int64_t groups = fk::group_count(problem.k);
  std::vector<int8_t> codes(static_cast<size_t>(problem.m * groups * fk::kGroupSize));
  std::vector<float> scales(static_cast<size_t>(problem.m * groups));
  fk::quantize_activations(codes.data(), scales.data(), call.x, call.y.type, problem.m, problem.k,
                           fk::kGroupSize, problem.act_bits);
  fk::gemm_w6ax(y, {codes.data(), scales.data()}, {call.codes, call.scales}, call.y.bias, problem);
}

}  // namespace

void linear_cpu(const LinearCall& call) {
  if (call.y.type == fk::FloatType::kFp32) {
    multiply(static_cast<float*>(call.y.values), call);
    return;
  }
  std::vector<float> product(static_cast<size_t>(call.problem.m * call.problem.n));
  multiply(product.data(), call);
  if (call.y.type == fk::FloatType::kFp16) {
    round_to<Half>(call.y.values, product);
  } else {
    round_to<BFloat16>(call.y.values, product);
  }
}

void bind_linear(py::module_& kernels) {
  kernels.def("linear", &linear, py::arg("y"), py::arg("x"), py::arg("codes"), py::arg("scales"),
              py::arg("n"), py::arg("k"), py::kw_only(), py::arg("act_bits"),
              py::arg("bias") = py::none(), py::arg("scratch") = py::none(),
              py::arg("workspace") = py::none(), py::arg("stream") = 0);
  kernels.def("dequantize", &dequantize, py::arg("values"), py::arg("codes"), py::arg("scales"),
              py::arg("n"), py::arg("k"), py::kw_only(), py::arg("stream"));
  kernels.def("linear_scratch_bytes", &scratch_bytes, py::arg("m"), py::arg("n"), py::arg("k"),
              py::kw_only(), py::arg("act_bits"));
  kernels.def("linear_workspace_bytes", &workspace_bytes, py::arg("m"), py::arg("n"), py::arg("k"),
              py::kw_only(), py::arg("act_bits"), py::arg("device"));
}

}  // namespace flexq_ft
