// The sampling part of flexq_ft._native.ops.
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>

#include "ft/binding/arrays.h"
#include "ft/binding/module.h"
#include "ft/binding/staging.h"
#include "ft/kernels/device_sampling.h"
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

// DeviceSlots in arrays, encoded from what a test says of every slot.
struct SlotArrays {
  py::array params, history, tokens, finished, words;

  SlotArrays(const std::vector<std::vector<int64_t>>& histories,
             const std::vector<py::dict>& fields, const std::vector<int64_t>& prompts,
             const std::vector<int64_t>& end_ids, int64_t max_len) {
    const auto slots = static_cast<int64_t>(histories.size());
    FLEXQ_FT_CHECK_EQ(fields.size(), histories.size(), "sampling: params of slots");
    FLEXQ_FT_CHECK_EQ(prompts.size(), histories.size(), "sampling: prompts of slots");
    params = new_array(DataType::kUint8, Shape{slots, sizeof(SlotParams)});
    history = new_array(DataType::kInt32, Shape{slots, max_len});
    tokens = new_array(DataType::kInt32, Shape{slots});
    finished = new_array(DataType::kInt32, Shape{slots});
    words = new_array(DataType::kInt32, Shape{slots, kWordInts});
    for (int64_t s = 0; s < slots; ++s) {
      const size_t i = static_cast<size_t>(s);
      fill(s, histories[i], params_of(fields[i]), prompts[i], end_ids, max_len);
    }
  }

  void fill(int64_t s, const std::vector<int64_t>& ids, const SamplingParams& with, int64_t prompt,
            const std::vector<int64_t>& model_end_ids, int64_t max_len) {
    FLEXQ_FT_CHECK_LE(static_cast<int64_t>(ids.size()), max_len, "sampling: history of slot ", s);
    std::vector<int64_t> end_ids = with.end_ids.empty() ? model_end_ids : with.end_ids;
    if (with.ignore_eos) end_ids.clear();
    std::vector<int32_t> encoded;
    const std::vector<uint8_t> bytes = encode_slot(with, end_ids, prompt, max_len, &encoded);
    std::memcpy(static_cast<uint8_t*>(params.mutable_data()) + s * params.shape(1), bytes.data(),
                bytes.size());
    std::copy(encoded.begin(), encoded.end(),
              static_cast<int32_t*>(words.mutable_data()) + s * kWordInts);
    std::copy(ids.begin(), ids.end(), static_cast<int32_t*>(history.mutable_data()) + s * max_len);
    static_cast<int32_t*>(tokens.mutable_data())[s] = static_cast<int32_t>(ids.size());
  }

  std::vector<std::vector<int32_t>> histories() const {
    std::vector<std::vector<int32_t>> all;
    const auto* ids = static_cast<const int32_t*>(history.data());
    for (int64_t s = 0; s < tokens.size(); ++s, ids += history.shape(1)) {
      all.emplace_back(ids, ids + static_cast<const int32_t*>(tokens.data())[s]);
    }
    return all;
  }
};

py::dict sample_on_device(const py::array& logits,
                          const std::vector<std::vector<int64_t>>& histories,
                          const std::vector<py::dict>& fields, const py::object& prompts,
                          const py::object& row_slots, const std::vector<int64_t>& model_end_ids,
                          int64_t max_len, int64_t repeat) {
  const ConstTensor shape = const_tensor(logits);
  FLEXQ_FT_CHECK_EQ(shape.rank(), 2, "sampling: logits ", shape.shape());
  std::vector<int64_t> prompt_tokens;
  for (const auto& ids : histories) prompt_tokens.push_back(static_cast<int64_t>(ids.size()));
  if (!prompts.is_none()) prompt_tokens = prompts.cast<std::vector<int64_t>>();
  SlotArrays arrays(histories, fields, prompt_tokens, model_end_ids, max_len);
  const int64_t rows = shape.dim(0);
  py::array slots_of_rows = new_array(DataType::kInt32, Shape{rows});
  auto* of_row = static_cast<int32_t*>(slots_of_rows.mutable_data());
  for (int64_t r = 0; r < rows; ++r) of_row[r] = static_cast<int32_t>(r);
  if (!row_slots.is_none()) {
    const auto given = row_slots.cast<std::vector<int32_t>>();
    FLEXQ_FT_CHECK_EQ(static_cast<int64_t>(given.size()), rows, "sampling: row_slots");
    std::copy(given.begin(), given.end(), of_row);
  }
  py::array out = new_array(DataType::kUint8, Shape{rows, sizeof(DeviceSample)});
  Staging stage;
  const DeviceSlots slots{stage.inout(arrays.params), stage.inout(arrays.history),
                          stage.inout(arrays.tokens), stage.inout(arrays.finished),
                          stage.inout(arrays.words)};
  const Tensor device_out = stage.inout(out);
  const auto bytes = static_cast<int64_t>(sample_workspace_bytes(rows, shape.dim(1)));
  const Tensor workspace = stage.scratch(DataType::kUint8, Shape{bytes});
  const ConstTensor device_rows = stage.in(slots_of_rows);
  std::vector<py::array> copies;  // the op may change its logits
  for (int64_t i = 0; i < repeat; ++i) {
    copies.push_back(logits.attr("copy")().cast<py::array>());
    const Tensor step_logits = stage.inout(copies.back());
    invokeSample(device_out, step_logits, device_rows, slots, workspace, stage.stream());
  }
  stage.finish();
  py::list tokens, logprobs, statuses;
  const auto* samples = static_cast<const DeviceSample*>(out.data());
  for (int64_t r = 0; r < rows; ++r) {
    tokens.append(samples[r].token);
    logprobs.append(samples[r].logprob);
    statuses.append(samples[r].status);
  }
  py::dict result;
  result["tokens"] = tokens;
  result["logprobs"] = logprobs;
  result["status"] = statuses;
  result["finished"] = arrays.finished;
  result["histories"] = arrays.histories();
  return result;
}

void throw_sampling_fault_of(int32_t status, int32_t token, float logprob, int64_t vocab_size,
                             const py::kwargs& fields) {
  throw_sampling_fault({0, token, logprob, status}, params_of(fields), vocab_size);
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
  ops.def(
      "sample_on_device", &sample_on_device, py::arg("logits"), py::arg("histories"),
      py::arg("params"), py::kw_only(), py::arg("prompts") = py::none(),
      py::arg("row_slots") = py::none(), py::arg("model_end_ids") = std::vector<int64_t>(),
      py::arg("max_len") = 256, py::arg("repeat") = 1,
      "Samples every row of logits [rows, vocab] into its slot, repeat times. params: a dict of "
      "SamplingParams' fields for each slot; prompts: how many ids of a history are prompt, "
      "all if None. Returns tokens, logprobs, status, finished and histories.");
  ops.def("throw_sampling_fault", &throw_sampling_fault_of, py::arg("status"), py::arg("token"),
          py::arg("logprob"), py::arg("vocab_size"));
  ops.def("philox_uniform", &philox_uniform, py::arg("seed"), py::arg("index"));
}

}  // namespace flexq_ft
