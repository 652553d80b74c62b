// A decode step of synthetic weights as one kernel, and op by op in a graph, beside the time that
// its bytes take at the read rate of the same run.
//   flexq_ft_step_bench --shape configs/models/llama-7b.ini --scheme w6ax --batch 1,2,4,8
//                       [--context 256] [--dtype fp16] [--layers N] [--tune] [--trace]
#include <algorithm>
#include <cstdio>
#include <functional>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "ft/bench/read_stream.h"
#include "ft/bench/step_case.h"
#include "ft/core/error.h"
#include "ft/kernels/timed_graph.h"

namespace flexq_ft {

namespace {

struct BenchOptions {
  std::string shape;
  std::vector<Scheme> schemes{Scheme::kW6Ax};
  std::vector<int64_t> batches{1};
  int64_t context = 256;
  int64_t layers = 0;
  DataType dtype = DataType::kFp16;
  bool tune = false;
  bool trace = false;
};

double ms_of(Stream stream, const std::function<void()>& step) {
  constexpr int kSteps = 8, kReplays = 15;
  step();
  cuda::synchronize(stream);
  TimedGraph graph(stream, kSteps, [] {}, [&](int) { step(); });
  std::vector<double> times;
  graph.replay(stream);
  for (int i = 0; i < kReplays; ++i) times.push_back(graph.replay(stream) / 1000);
  return quantile(times, 0.5);
}

// Where the time of a layer goes, in microseconds: means over layers and blocks, and means over
// layers of the block with the least and of the one with the most.
void print_trace(StepCase& model, StepKernel& kernel, const RaggedBatch& batch, int blocks) {
  using step::kMarks;
  const int64_t ops = kernel.ops_of_step();
  const Buffer trace(static_cast<size_t>(ops * blocks * kMarks) * 8, MemoryKind::kWorkspace,
                     Device::kCuda);
  std::vector<uint64_t> at(trace.bytes() / 8);
  cuda::fill(trace.data(), 0, trace.bytes(), model.stream());
  kernel.set_trace(trace.tensor());
  for (int i = 0; i < 3; ++i) kernel.run(model.logits(batch.sequences()), batch, model.stream());
  cuda::copy(at.data(), trace.data(), trace.bytes(), model.stream());
  cuda::synchronize(model.stream());
  kernel.set_trace({});
  constexpr const char* kNames[] = {"qkv", "attention", "o", "up", "down", "lm_head"};
  std::printf(
      "  us          wait (least - most)   gather               product"
      "              (attention: -, parts, combine)\n");
  for (int kind = 0; kind <= step::kHead; ++kind) {
    double sums[kMarks - 1] = {}, least[kMarks - 1] = {}, most[kMarks - 1] = {};
    int64_t count = 0, layers = 0;
    for (int64_t op = 0; op < ops; ++op) {
      const int64_t of = op == ops - 1 ? static_cast<int64_t>(step::kHead) : op % step::kLayerOps;
      if (of != kind) continue;
      std::vector<double> times[kMarks - 1];  // of the blocks
      for (int b = 0; b < blocks; ++b) {
        const uint64_t* marks = &at[static_cast<size_t>((op * blocks + b) * kMarks)];
        if (marks[step::kGathered] < marks[step::kBegun]) continue;  // no part in it
        for (int i = 0; i + 1 < kMarks; ++i) {
          times[i].push_back(static_cast<double>(marks[i + 1] - marks[i]) * 1e-3);
        }
        ++count;
      }
      for (int i = 0; i + 1 < kMarks; ++i) {
        const auto [low, high] = std::minmax_element(times[i].begin(), times[i].end());
        if (low == times[i].end()) continue;
        for (const double time : times[i]) sums[i] += time;
        least[i] += *low;
        most[i] += *high;
      }
      ++layers;
    }
    std::printf("  %-10s", kNames[kind]);
    for (int i = 0; i + 1 < kMarks; ++i) {
      const auto of_layers = static_cast<double>(layers);
      std::printf(" %6.2f (%5.2f - %5.2f)", sums[i] / static_cast<double>(count),
                  least[i] / of_layers, most[i] / of_layers);
    }
    std::printf("\n");
  }
}

void run_scheme(const BenchOptions& options, Scheme scheme, double rate) {
  ModelFolder folder = shape_folder(options.shape, scheme, options.dtype, 1);
  if (options.layers > 0) folder.config.num_layers = options.layers;
  EngineOptions engine;
  engine.dtype = options.dtype;
  engine.scheme = scheme;
  engine.device = Device::kCuda;
  engine.max_len = std::max<int64_t>(options.context + 1, 512);
  const int64_t most = *std::max_element(options.batches.begin(), options.batches.end());
  StepCase model(std::move(folder), engine,
                 std::vector<int64_t>(static_cast<size_t>(most), options.context));
  const cuda::DeviceInfo device = cuda::device_info(cuda::current_device());
  const std::string why = StepKernel::refusal(model.model(), device);
  if (!why.empty()) {
    std::printf("%s: %s\n", to_string(scheme), why.c_str());
    return;
  }
  StepKernel kernel(model.model(), device, model.stream());
  for (const int64_t batch : options.batches) {
    const Tensor logits = model.logits(batch);
    const RaggedBatch step = model.batch(0, batch);
    const double bytes = static_cast<double>(model.step_bytes(batch));
    const double floor_ms = bytes / rate * 1e3;
    const double ops_ms = ms_of(model.stream(), [&] { model.run_ops(logits, step); });
    const auto line = [&](const char* name, double ms) {
      std::printf("%-6s batch %lld context %lld %-28s %8.4f ms %7.1f steps/s %5.1f %% of floor\n",
                  to_string(scheme), static_cast<long long>(batch),
                  static_cast<long long>(options.context), name, ms, 1e3 / ms, 100 * floor_ms / ms);
      std::fflush(stdout);
    };
    line("op by op", ops_ms);
    if (batch > kernel.most_tokens()) {
      std::printf("%-6s batch %lld: too large for the step kernel\n", to_string(scheme),
                  static_cast<long long>(batch));
      continue;
    }
    // In a short ring several wanted flows are the same one, which is measured once.
    std::set<std::string> measured;
    const auto measure = [&](const StepFlow& wanted) {
      kernel.set_flow(wanted);
      const StepFlow flow = kernel.flow(batch);
      std::ostringstream name;
      name << "step kernel " << flow.in_flight << "/" << flow.in_flight_filled << "/"
           << flow.filled;
      if (!measured.insert(name.str()).second) return;
      line(name.str().c_str(),
           ms_of(model.stream(), [&] { kernel.run(logits, step, model.stream()); }));
    };
    const StepFlow base = StepFlow::of(device);
    measure(base);
    if (options.trace) print_trace(model, kernel, step, device.multiprocessors);
    if (!options.tune) continue;
    for (const int in_flight : {3, 5, 7}) {
      for (const int later : {1, 3, 5}) {
        for (const int filled : {6, 9, 12}) {
          if (later <= in_flight) measure({in_flight, later, filled});
        }
      }
    }
  }
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ',');) out.push_back(part);
  return out;
}

Scheme scheme_named(const std::string& name) {
  for (const Scheme scheme : {Scheme::kFloat, Scheme::kW8A16, Scheme::kW8A8, Scheme::kW6Ax}) {
    if (name == to_string(scheme)) return scheme;
  }
  throw Error(ErrorKind::kConfig, "there is no scheme " + name);
}

BenchOptions parse(int argc, char** argv) {
  BenchOptions options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--tune") {
      options.tune = true;
      continue;
    }
    if (name == "--trace") {
      options.trace = true;
      continue;
    }
    if (i + 1 == argc) throw Error(ErrorKind::kConfig, name + " needs a value");
    const std::string value = argv[++i];
    if (name == "--shape") {
      options.shape = value;
    } else if (name == "--scheme") {
      options.schemes.clear();
      for (const std::string& part : split(value)) options.schemes.push_back(scheme_named(part));
    } else if (name == "--batch") {
      options.batches.clear();
      for (const std::string& part : split(value)) options.batches.push_back(std::stoll(part));
    } else if (name == "--context") {
      options.context = std::stoll(value);
    } else if (name == "--layers") {
      options.layers = std::stoll(value);
    } else if (name == "--dtype") {
      options.dtype = value == "bf16" ? DataType::kBf16 : DataType::kFp16;
    } else {
      throw Error(ErrorKind::kConfig, "unknown option " + name);
    }
  }
  return options;
}

}  // namespace

}  // namespace flexq_ft

int main(int argc, char** argv) {
  using namespace flexq_ft;
  try {
    const BenchOptions options = parse(argc, argv);
    const double rate = measure_read_stream_gpu({}, cuda::current_device());
    std::printf("read stream %.3f TB/s\n", rate * 1e-12);
    for (const Scheme scheme : options.schemes) run_scheme(options, scheme, rate);
  } catch (const Error& error) {
    std::fprintf(stderr, "flexq_ft_step_bench: %s\n", error.what());
    return exit_code(error.kind());
  }
  return 0;
}
