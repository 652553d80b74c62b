// The measurements of bench gemm: W6Ax products by every implementation, activation quantisers.
#include "ft/bench/w6ax_bench.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "ft/bench/quantizer_bench.h"
#include "ft/binding/module.h"
#include "ft/core/library_errors.h"
#include "ft/kernels/w6ax_gemm.h"

namespace py = pybind11;

namespace flexq_ft {

namespace {

py::dict time_dict(const W6axTime& time) {
  py::dict out;
  out["implementation"] = time.implementation;
  out["config"] = time.config;
  out["note"] = time.note;
  out["us"] = time.median;
  out["p10"] = time.p10;
  out["p90"] = time.p90;
  out["full_edges_us"] = time.full_edges > 0 ? py::object(py::float_(time.full_edges)) : py::none();
  out["sustained_us"] = time.sustained > 0 ? py::object(py::float_(time.sustained)) : py::none();
  return out;
}

py::dict measure_w6ax(int64_t m, int64_t n, int64_t k, int act_bits,
                      const std::vector<std::string>& implementations, int heuristics,
                      int64_t cold_bytes, int replays, double sustained_s) {
  W6axBenchOptions options;
  options.implementations = implementations;
  options.heuristics = heuristics;
  options.cold_bytes = cold_bytes;
  options.replays = replays;
  options.sustained_s = sustained_s;
  W6axBenchRow row;
  {
    const py::gil_scoped_release release;
    row = with_library_errors(ErrorKind::kConfig,
                              [&] { return make_w6ax_bench(options)->run({m, n, k, act_bits}); });
  }
  py::dict out;
  py::list times;
  for (const W6axTime& time : row.times) times.append(time_dict(time));
  out["m"] = m;
  out["n"] = n;
  out["k"] = k;
  out["act_bits"] = act_bits;
  out["times"] = times;
  out["refused"] = row.refused;
  out["heuristics"] = row.heuristics;
  return out;
}

py::dict quantizers(int64_t m, int64_t k, int act_bits, int launches, int replays) {
  QuantizerTimes times;
  {
    const py::gil_scoped_release release;
    times = with_library_errors(
        ErrorKind::kConfig, [&] { return measure_quantizers(m, k, act_bits, launches, replays); });
  }
  py::dict out;
  out["alone"] = times.alone;
  out["norm"] = times.norm;
  out["norm_and_codes"] = times.norm_and_codes;
  out["activation"] = times.activation;
  out["activation_and_codes"] = times.activation_and_codes;
  return out;
}

}  // namespace

void bind_w6ax_bench(py::module_& module) {
  module.def("measure_w6ax", &measure_w6ax, py::kw_only(), py::arg("m"), py::arg("n"), py::arg("k"),
             py::arg("act_bits"), py::arg("implementations"), py::arg("heuristics") = 64,
             py::arg("cold_bytes") = int64_t{400} << 20, py::arg("replays") = 30,
             py::arg("sustained_s") = 0.0,
             "Times of one product in microseconds, of the fastest kernel of each implementation.");
  module.def(
      "explain_w6ax",
      [](int64_t m, int64_t n, int64_t k, int act_bits) {
        return explain_w6ax({m, n, k, act_bits});
      },
      py::kw_only(), py::arg("m"), py::arg("n"), py::arg("k"), py::arg("act_bits"),
      "The kernel of the current GPU for a product, why, and what else there is.");
  module.def("measure_quantizers", &quantizers, py::kw_only(), py::arg("m"), py::arg("k"),
             py::arg("act_bits"), py::arg("launches") = 200, py::arg("replays") = 20,
             "Times of the activation quantiser in microseconds, alone and inside other ops.");
}

}  // namespace flexq_ft
