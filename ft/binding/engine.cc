// Engine: the step face, teacher forcing and replay, for Python. The GIL is released in every call.
#include "ft/decoding/engine.h"
#include "ft/decoding/kv_cache.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>
#include <string>
#include <tuple>

#include "ft/binding/module.h"
#include "ft/core/buffer.h"
#include "ft/core/check.h"
#include "ft/decoding/host.h"

namespace py = pybind11;

namespace flexq_ft {

namespace {

using Ids = std::vector<int64_t>;
using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Step = std::tuple<int64_t, int64_t, float, std::optional<std::string>>;

[[noreturn]] void refuse(const std::string& message, std::string hint) {
  throw Error(ErrorKind::kConfig, message, {}, std::move(hint));
}

// The array takes the vector's memory over.
template <typename T>
py::array_t<T> to_array(std::vector<T>&& values, std::vector<py::ssize_t> shape) {
  auto owner = std::make_unique<std::vector<T>>(std::move(values));
  const T* data = owner->data();
  const py::capsule base(owner.get(), [](void* p) { delete static_cast<std::vector<T>*>(p); });
  owner.release();
  return py::array_t<T>(std::move(shape), data, base);
}

// "bf16" and "fp32" name the float scheme and its compute type; "fp16" the scheme only.
void set_scheme(const std::string& name, EngineOptions* options) {
  DataType dtype;
  if (parse_dtype(name, &dtype) && is_float(dtype)) {
    options->scheme = Scheme::kFloat;
    if (dtype == DataType::kFp16) return;  // it stands for every float scheme
    if (options->dtype.value_or(dtype) != dtype) {
      refuse(detail::join("scheme is ", name, " and dtype is ", *options->dtype),
             "give one of them");
    }
    options->dtype = dtype;
    return;
  }
  for (Scheme scheme : {Scheme::kW8A16, Scheme::kW8A8, Scheme::kW6Ax}) {
    if (name != to_string(scheme)) continue;
    options->scheme = scheme;
    return;
  }
  refuse(detail::join("scheme \"", name, "\" is not known"),
         "use fp16, bf16, fp32, w8a16, w8a8 or w6ax");
}

HeadFormat head_format(const std::string& name) {
  HeadFormat head;
  if (parse_head_format(name, &head)) return head;
  refuse(detail::join("lm_head \"", name, "\" is not known"), "use fp16, w8 or w6");
}

StepKernelChoice step_kernel_choice(const std::string& name) {
  if (name == "auto") return StepKernelChoice::kAuto;
  if (name == "on") return StepKernelChoice::kOn;
  if (name == "off") return StepKernelChoice::kOff;
  refuse(detail::join("step_kernel \"", name, "\" is not known"), "use auto, on or off");
}

py::object policy(const Engine& engine) {
  if (engine.options().scheme != Scheme::kW6Ax) return py::none();
  return py::cast(*engine.options().policy).attr("to_dict")();
}

// The engine loads without the GIL, and may copy and drop its options without it too.
LoadProgress load_progress(const py::object& callback) {
  if (callback.is_none()) return {};
  const std::shared_ptr<py::object> kept(new py::object(callback), [](py::object* object) {
    const py::gil_scoped_acquire gil;
    delete object;
  });
  return [kept](int64_t done, int64_t total) {
    const py::gil_scoped_acquire gil;
    (*kept)(done, total);
  };
}

std::unique_ptr<Engine> make_engine(
    const std::string& model_dir, const std::optional<std::string>& dtype,
    const std::optional<std::string>& scheme, const std::optional<py::dict>& policy,
    const std::optional<std::string>& lm_head, int64_t max_len, int64_t max_batch,
    int64_t prefill_tokens, int64_t kv_tokens, int threads, std::shared_ptr<DeviceComm> comm,
    const std::string& device, int gpu, bool graphs, const std::string& step_kernel,
    bool synthetic_weights, const py::object& progress) {
  EngineOptions options;
  if (device != "cpu" && device != "cuda") {
    refuse(detail::join("device \"", device, "\" is not known"), "use cpu or cuda");
  }
  options.device = device == "cuda" ? Device::kCuda : Device::kCpu;
  options.gpu = gpu;
  options.graphs = graphs;
  options.step_kernel = step_kernel_choice(step_kernel);
  options.synthetic_weights = synthetic_weights;
  options.progress = load_progress(progress);
  if (dtype) {
    DataType type;
    if (!parse_dtype(*dtype, &type) || !is_float(type)) {
      refuse(detail::join("dtype \"", *dtype, "\" is not known"), "use fp16, bf16 or fp32");
    }
    options.dtype = type;
  }
  if (scheme) set_scheme(*scheme, &options);
  if (policy) options.policy = policy_from_python(*policy);
  if (lm_head) options.lm_head = head_format(*lm_head);
  options.max_len = max_len;
  options.max_batch = max_batch;
  if (kv_tokens < 0) {
    refuse(detail::join("kv_tokens is ", kv_tokens), "leave kv_tokens out: as many as fit");
  }
  options.kv_pages = pages_for(kv_tokens);
  options.prefill_tokens = prefill_tokens;
  options.threads = threads;
  if (!comm) comm = make_single_comm();
  py::gil_scoped_release nogil;
  return std::make_unique<Engine>(model_dir, options, std::move(comm));
}

std::vector<Step> step(Engine& engine) {
  std::vector<Step> out;
  for (const StepOutput& output : engine.step()) {
    std::optional<std::string> finish;
    if (output.finish == FinishReason::kStop) finish = "stop";
    if (output.finish == FinishReason::kLength) finish = "length";
    out.emplace_back(output.slot, output.token, output.logprob, finish);
  }
  return out;
}

py::list profile(Engine& engine, int64_t batch, int64_t context, int64_t tokens) {
  std::vector<StepNode> nodes;
  {
    py::gil_scoped_release nogil;
    nodes = engine.profile(batch, context, tokens);
  }
  std::map<std::string, int> seen;  // an op comes once a layer
  py::list out;
  for (const StepNode& node : nodes) {
    py::dict entry;
    entry["name"] = node.op;
    entry["layer"] = seen[node.op]++;
    entry["ms"] = node.ms;
    entry["bytes"] = node.bytes;
    out.append(entry);
  }
  return out;
}

py::array_t<float> forward(Engine& engine, const Ids& ids) {
  std::vector<float> logits;
  {
    py::gil_scoped_release nogil;
    logits = engine.forward(ids);
  }
  return to_array(std::move(logits),
                  {static_cast<py::ssize_t>(ids.size()), engine.folder().config.vocab_size});
}

py::tuple score(Engine& engine, const Ids& ids, int64_t first) {
  Engine::Score score;
  {
    py::gil_scoped_release nogil;
    score = engine.score(ids, first);
  }
  const py::ssize_t count = static_cast<py::ssize_t>(score.logprobs.size());
  return py::make_tuple(to_array(std::move(score.logprobs), {count}),
                        to_array(std::move(score.argmax), {count}));
}

py::list score_batch(Engine& engine, const std::vector<Ids>& texts,
                     const std::vector<int64_t>& first) {
  if (texts.size() != first.size()) {
    refuse(detail::join(texts.size(), " texts and ", first.size(), " first tokens"),
           "give one for each");
  }
  std::vector<Engine::ScoredText> asked;
  for (size_t i = 0; i < texts.size(); ++i) asked.push_back({texts[i], first[i]});
  std::vector<Engine::Score> scores;
  {
    py::gil_scoped_release nogil;
    scores = engine.score(asked);
  }
  py::list out;
  for (Engine::Score& score : scores) {
    const py::ssize_t count = static_cast<py::ssize_t>(score.logprobs.size());
    out.append(py::make_tuple(to_array(std::move(score.logprobs), {count}),
                              to_array(std::move(score.argmax), {count})));
  }
  return out;
}

py::list trace(Engine& engine, const Ids& ids) {
  std::vector<LinearTrace> traces;
  {
    py::gil_scoped_release nogil;
    traces = engine.trace(ids);
  }
  py::list out;
  for (LinearTrace& trace : traces) {
    py::dict entry;
    entry["name"] = trace.name;
    entry["x"] = to_array(std::move(trace.x), {trace.tokens, trace.k});
    entry["y"] = to_array(std::move(trace.y), {trace.tokens, trace.n});
    out.append(entry);
  }
  return out;
}

py::array_t<float> run_linear(Engine& engine, const std::string& name, const FloatArray& x) {
  if (x.ndim() != 2) refuse(detail::join("x has ", x.ndim(), " axes"), "give [tokens, k]");
  const py::ssize_t tokens = x.shape(0);
  const std::vector<float> input(x.data(), x.data() + x.size());
  std::vector<float> y;
  {
    py::gil_scoped_release nogil;
    y = engine.run_linear(name, input, tokens);
  }
  const py::ssize_t n = static_cast<py::ssize_t>(y.size()) / tokens;
  return to_array(std::move(y), {tokens, n});
}

int64_t admit(Engine& engine, const Ids& ids, double temperature, int64_t top_k, double top_p,
              double min_p, double repetition_penalty, double presence_penalty, int64_t min_tokens,
              int64_t max_tokens, uint64_t seed, bool ignore_eos, Ids end_ids,
              std::vector<Ids> stop_words, std::vector<Ids> bad_words) {
  const SamplingParams params{
      temperature,         top_k,      top_p, min_p,      repetition_penalty, presence_penalty,
      min_tokens,          max_tokens, seed,  ignore_eos, std::move(end_ids), std::move(stop_words),
      std::move(bad_words)};
  py::gil_scoped_release nogil;
  return engine.admit(ids, params);
}

std::map<std::string, size_t> memory(const Engine& engine) {
  std::map<std::string, size_t> out;
  const std::array<size_t, kMemoryKinds> bytes = engine.memory();
  for (int kind = 0; kind < kMemoryKinds; ++kind) {
    out[to_string(static_cast<MemoryKind>(kind))] = bytes[kind];
  }
  return out;
}

void bind_admit(py::class_<Engine>& engine) {
  const SamplingParams defaults;
  engine.def("admit", &admit, py::arg("ids"), py::kw_only(),
             py::arg("temperature") = defaults.temperature, py::arg("top_k") = defaults.top_k,
             py::arg("top_p") = defaults.top_p, py::arg("min_p") = defaults.min_p,
             py::arg("repetition_penalty") = defaults.repetition_penalty,
             py::arg("presence_penalty") = defaults.presence_penalty,
             py::arg("min_tokens") = defaults.min_tokens,
             py::arg("max_tokens") = defaults.max_tokens, py::arg("seed") = defaults.seed,
             py::arg("ignore_eos") = defaults.ignore_eos, py::arg("end_ids") = defaults.end_ids,
             py::arg("stop_words") = defaults.stop_words,
             py::arg("bad_words") = defaults.bad_words);
}

void bind_properties(py::class_<Engine>& engine) {
  engine
      .def_property_readonly(
          "config", [](const Engine& e) -> const ModelConfig& { return e.folder().config; })
      .def_property_readonly("folder", &Engine::folder)
      .def_property_readonly("dtype", [](const Engine& e) { return to_string(*e.options().dtype); })
      .def_property_readonly("scheme",
                             [](const Engine& e) { return to_string(*e.options().scheme); })
      .def_property_readonly("policy", &policy)
      .def_property_readonly("lm_head",
                             [](const Engine& e) { return to_string(*e.options().lm_head); })
      .def_property_readonly("max_len", [](const Engine& e) { return e.options().max_len; })
      .def_property_readonly("kv_tokens",
                             [](const Engine& e) { return e.options().kv_pages * kPageTokens; })
      .def_property_readonly("max_batch", [](const Engine& e) { return e.options().max_batch; })
      .def_property_readonly("device",
                             [](const Engine& e) { return to_string(e.options().device); })
      .def_property_readonly("gemm_note", &Engine::gemm_note)
      .def_property_readonly("gemm_choices", &Engine::gemm_choices)
      .def_property_readonly("step_note", &Engine::step_note)
      .def_property_readonly("step_kernel_batch", &Engine::step_kernel_batch)
      .def_property_readonly("threads", [](const Engine& e) { return e.options().threads; })
      .def("memory", &memory);
}

}  // namespace

void bind_engine(py::module_& module) {
  using Nogil = py::call_guard<py::gil_scoped_release>;
  py::class_<Engine> engine(module, "Engine");
  engine
      .def(py::init(&make_engine), py::arg("model_dir"), py::kw_only(),
           py::arg("dtype") = py::none(), py::arg("scheme") = py::none(),
           py::arg("policy") = py::none(), py::arg("lm_head") = py::none(), py::arg("max_len") = 0,
           py::arg("max_batch") = 8, py::arg("prefill_tokens") = 0, py::arg("kv_tokens") = 0,
           py::arg("threads") = 0, py::arg("comm") = py::none(), py::arg("device") = "cpu",
           py::arg("gpu") = 0, py::arg("graphs") = true, py::arg("step_kernel") = "auto",
           py::arg("synthetic_weights") = false, py::arg("progress") = py::none())
      .def("can_admit", &Engine::can_admit, py::arg("prompt_tokens"), py::arg("max_tokens"),
           Nogil())
      .def("step", &step, Nogil())
      .def("release", &Engine::release, py::arg("slot"), Nogil())
      .def("take_step_times", &Engine::take_step_times, Nogil())
      .def("drop_graphs", &Engine::drop_graphs, Nogil())
      .def("_withhold_step_op", &Engine::withhold_step_op, py::arg("op"), py::arg("patience_ms"),
           Nogil())
      .def("step_profile", &profile, py::arg("batch"), py::arg("context"), py::arg("tokens") = 1)
      .def("forward", &forward, py::arg("ids"))
      .def("score", &score, py::arg("ids"), py::arg("first") = 1)
      .def("score_batch", &score_batch, py::arg("texts"), py::arg("first"))
      .def("trace", &trace, py::arg("ids"))
      .def("run_linear", &run_linear, py::arg("name"), py::arg("x"));
  bind_admit(engine);
  bind_properties(engine);
  module.def("peak_resident_bytes", &peak_resident_bytes);
  module.def("usable_cores", &usable_cores);
  module.def("available_memory", &available_memory);
}

}  // namespace flexq_ft
