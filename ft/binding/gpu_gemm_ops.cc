// GpuGemm for tests, its measurement for `flexq-ft bench tune`, and what doctor asks of cuBLASLt.
#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "ft/binding/arrays.h"
#include "ft/binding/module.h"
#include "ft/binding/staging.h"
#include "ft/core/check.h"
#include "ft/core/nvidia_library.h"
#include "ft/kernels/cublaslt.h"
#include "ft/kernels/gemm_table.h"
#include "ft/kernels/gemm_tuner.h"
#include "ft/kernels/gpu_gemm.h"

namespace py = pybind11;

namespace flexq_ft {

namespace {

Scheme scheme_named(const std::string& name) {
  for (Scheme scheme : {Scheme::kFloat, Scheme::kW8A16, Scheme::kW8A8}) {
    if (name == to_string(scheme)) return scheme;
  }
  throw Error(ErrorKind::kConfig, "unknown scheme '" + name + "'", {}, "use fp16, w8a16 or w8a8");
}

// One for all tests with the same table; never deleted, since the driver may be gone at exit.
GpuGemm& gemm_for(int64_t tokens, int64_t largest_w8a16, const std::string& table) {
  static GpuGemm* gemm = nullptr;
  static GpuGemmLimits limits;
  const bool fits = gemm != nullptr && tokens <= limits.max_tokens &&
                    largest_w8a16 <= limits.largest_w8a16 && table == limits.table;
  if (fits) return *gemm;
  limits.max_tokens = std::max<int64_t>(tokens, 1024);
  limits.largest_w8a16 = std::max(largest_w8a16, limits.largest_w8a16);
  limits.table = table;
  delete gemm;
  gemm = nullptr;  // in case there can be no other
  gemm = make_gpu_gemm(limits).release();
  return *gemm;
}

py::array gpu_gemm(const py::array& x, const py::array& w, const std::string& scheme,
                   const std::string& table) {
  const Scheme which = scheme_named(scheme);
  Staging stage;
  const ConstTensor in = stage.in(x);
  const ConstTensor weight = stage.in(w);
  py::array y = new_array(which == Scheme::kW8A8 ? DataType::kInt32 : DataType::kFp32,
                          Shape{in.dim(0), weight.dim(0)});
  const int64_t codes = which == Scheme::kW8A16 ? weight.count() : 0;
  gemm_for(in.dim(0), codes, table).run(stage.inout(y), in, weight, which, stage.stream());
  stage.finish();
  return y;
}

std::string gpu_gemm_choice(const std::string& scheme, const std::string& dtype, int64_t m,
                            int64_t n, int64_t k, const std::string& table) {
  const GemmProblem problem{scheme_named(scheme), dtype_named(dtype), m, n, k};
  const int64_t codes = problem.scheme == Scheme::kW8A16 ? n * k : 0;
  return gemm_for(m, codes, table).choice(problem);
}

py::dict row_dict(const GemmRow& row) {
  py::dict out;
  out["scheme"] = to_string(row.problem.scheme);
  out["dtype"] = to_string(row.problem.dtype);
  out["n"] = row.problem.n;
  out["k"] = row.problem.k;
  out["m"] = row.problem.m;
  out["kernel"] = row.kernel;
  out["config"] = row.config;
  out["us"] = row.us;
  out["note"] = row.note;
  return out;
}

py::list gemm_table_rows(const std::string& text) {
  py::list out;
  for (const GemmRow* row : GemmTable::parse(text).rows()) out.append(row_dict(*row));
  return out;
}

std::string merged_gemm_tables(const std::string& older, const std::string& newer) {
  GemmTable table = GemmTable::parse(newer);
  table.add_missing(GemmTable::parse(older));
  return table.text();
}

py::dict result_dict(const TuneResult& result) {
  py::dict out = row_dict(result.row);
  out["returned"] = result.returned;
  out["skinny"] = result.skinny;
  out["refused"] = result.refused;
  py::list times;
  for (const TuneTime& time : result.times) {
    py::dict one;
    one["kernel"] = time.kernel;
    one["config"] = time.config;
    one["note"] = time.note;
    one["us"] = time.median;
    one["us_p10"] = time.p10;
    one["us_p90"] = time.p90;
    times.append(one);
  }
  out["finalists"] = times;
  return out;
}

// After each weight observe(results, text of the table so far) is called: an interrupted search
// keeps what it found.
using Observe = std::function<void(py::list, std::string)>;

std::string tune_gemm(const std::vector<py::dict>& weights, const std::string& older,
                      const Observe& observe, int heuristics, int64_t cold_bytes, int replays) {
  TuneOptions options;
  options.heuristics = heuristics;
  options.cold_bytes = cold_bytes;
  options.replays = replays;
  const std::unique_ptr<GemmTuner> tuner = make_gemm_tuner(options);
  const GemmTable before = older.empty() ? GemmTable() : GemmTable::parse(older);
  GemmTable table = tuner->empty_table();
  for (const py::dict& weight : weights) {
    const TuneWeight one{scheme_named(weight["scheme"].cast<std::string>()),
                         dtype_named(weight["dtype"].cast<std::string>()),
                         weight["n"].cast<int64_t>(), weight["k"].cast<int64_t>(),
                         weight["ms"].cast<std::vector<int64_t>>()};
    std::vector<TuneResult> results;
    {
      const py::gil_scoped_release release;
      results = tuner->tune(one);
    }
    py::list shown;
    for (const TuneResult& result : results) {
      table.set(result.row);
      shown.append(result_dict(result));
    }
    GemmTable merged = table;
    merged.add_missing(before);
    observe(shown, merged.text());
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
  table.add_missing(before);
  return table.text();
}

py::dict cublaslt_info() {
  const cublaslt::Library& library = cublaslt::library();
  py::dict out;
  out["path"] = library.path;
  out["version"] = cublaslt::version_text(library.version);
  return out;
}

// NVIDIA's wheels may lie in any folder that Python imports from.
void give_python_folders() {
  std::vector<std::string> folders;
  for (const py::handle& folder : py::module_::import("sys").attr("path")) {
    if (py::isinstance<py::str>(folder) && py::len(folder) > 0) {
      folders.push_back(folder.cast<std::string>());
    }
  }
  set_library_roots(std::move(folders));
}

}  // namespace

void bind_gpu_gemm(py::module_& module) {
  give_python_folders();
  py::module_ ops = module.attr("ops").cast<py::module_>();
  ops.def("gpu_gemm", &gpu_gemm, py::arg("x"), py::arg("w"), py::kw_only(), py::arg("scheme"),
          py::arg("table") = "",
          "x [m, k] times w [n, k] transposed, on the GPU; w8a16 without the weight's scales.");
  ops.def("gpu_gemm_choice", &gpu_gemm_choice, py::kw_only(), py::arg("scheme"), py::arg("dtype"),
          py::arg("m"), py::arg("n"), py::arg("k"), py::arg("table") = "");
  ops.def(
      "gpu_gemm_note", [](const std::string& table) { return gemm_for(1, 0, table).table_note(); },
      py::kw_only(), py::arg("table") = "");
  module.def("cublaslt_info", &cublaslt_info,
             "Path and version of the cuBLASLt in use, opened if need be; DeviceError if none.");
  module.def("tune_gemm", &tune_gemm, py::arg("weights"), py::kw_only(), py::arg("table") = "",
             py::arg("observe"), py::arg("heuristics") = 64,
             py::arg("cold_bytes") = int64_t{400} << 20, py::arg("replays") = 20,
             "Measures products of weights {scheme, dtype, n, k, ms}; returns the table's text.");
  module.def("gemm_table_rows", &gemm_table_rows, py::arg("text"));
  module.def("merged_gemm_tables", &merged_gemm_tables, py::arg("older"), py::arg("newer"));
  module.def("built_in_gemm_table", &built_in_gemm_table, py::arg("gpu"),
             "The text of the table for the GPU of that name, or empty.");
}

}  // namespace flexq_ft
