// The sampling part of flexq_ft._native.ops.
#include <pybind11/stl.h>

#include "ft/binding/arrays.h"
#include "ft/binding/module.h"
#include "ft/kernels/sampling.h"

namespace py = pybind11;

namespace flexq_ft {

namespace {

// Sets the field that a keyword names; an unknown one is an error.
SamplingParams params_of(const py::dict& fields) {
  SamplingParams p;
  for (const auto& [key, value] : fields) {
    const std::string name = py::cast<std::string>(key);
    if (name == "temperature")
      p.temperature = py::cast<double>(value);
    else if (name == "top_k")
      p.top_k = py::cast<int64_t>(value);
    else if (name == "top_p")
      p.top_p = py::cast<double>(value);
    else if (name == "min_p")
      p.min_p = py::cast<double>(value);
    else if (name == "repetition_penalty")
      p.repetition_penalty = py::cast<double>(value);
    else if (name == "presence_penalty")
      p.presence_penalty = py::cast<double>(value);
    else if (name == "min_tokens")
      p.min_tokens = py::cast<int64_t>(value);
    else if (name == "max_tokens")
      p.max_tokens = py::cast<int64_t>(value);
    else if (name == "seed")
      p.seed = py::cast<uint64_t>(value);
    else if (name == "ignore_eos")
      p.ignore_eos = py::cast<bool>(value);
    else if (name == "end_ids")
      p.end_ids = py::cast<std::vector<int64_t>>(value);
    else if (name == "stop_words")
      p.stop_words = py::cast<std::vector<std::vector<int64_t>>>(value);
    else if (name == "bad_words")
      p.bad_words = py::cast<std::vector<std::vector<int64_t>>>(value);
    else
      throw Error(ErrorKind::kConfig, "unknown sampling field '" + name + "'");
  }
  return p;
}

py::tuple sample(const py::array& logits, const std::vector<int64_t>& history, int64_t generated,
                 const std::vector<int64_t>& model_end_ids, const py::kwargs& fields) {
  const ConstTensor in = const_tensor(logits);
  const float* data = in.data<float>();
  std::vector<float> row(data, data + in.count());
  const Sampled out =
      sample_token(row.data(), in.count(), params_of(fields), model_end_ids, history, generated);
  return py::make_tuple(out.token, out.logprob);
}

}  // namespace

void bind_sampling(py::module_& ops) {
  ops.def("sample", &sample, py::arg("logits"), py::kw_only(),
          py::arg("history") = std::vector<int64_t>(), py::arg("generated") = 0,
          py::arg("model_end_ids") = std::vector<int64_t>(),
          "(token, logprob) of one row; other keywords are fields of SamplingParams.");
  ops.def(
      "validate_sampling",
      [](int64_t vocab_size, const py::kwargs& fields) { params_of(fields).validate(vocab_size); },
      py::arg("vocab_size"));
  ops.def("philox4x32", &philox4x32, py::arg("counter"), py::arg("key"));
  ops.def("philox_uniform", &philox_uniform, py::arg("seed"), py::arg("index"));
}

}  // namespace flexq_ft
