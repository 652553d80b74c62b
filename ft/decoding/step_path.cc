#include "ft/decoding/step_path.h"

#include <algorithm>

#include "ft/core/error.h"

namespace flexq_ft {

namespace {

// Of kAuto: the largest batch that takes less time as one kernel than op by op, as far as that was
// measured (docs/results/h200/step-kernel.md): one sequence always; more where blocks come in pairs
// and what the sequences need leaves enough shared memory for a long ring, two, or of six bits four
// where layers are small: ops lose time between each other, the more of it the less they have to
// read. W8A8 wins with two in a short ring as well.
int64_t measured_faster(const RunnerModel& model, const StepKernel& kernel) {
  constexpr int kLongRing = 12;                // stages
  constexpr size_t kSmallLayer = 200'000'000;  // bytes
  if (!kernel.pairs()) return 1;
  const LayerWeights& layer = model.decoder.weights().layers.front();
  const Scheme scheme = layer.qkv.format.scheme;
  const size_t bytes = layer.qkv.bytes() + layer.o.bytes() + layer.up.bytes() + layer.down.bytes();
  const bool four = scheme == Scheme::kW6Ax && bytes <= kSmallLayer;
  int64_t most = std::min<int64_t>(four ? 4 : 2, kernel.most_tokens());
  if (scheme == Scheme::kW8A8) return most;
  while (most > 1 && kernel.ring_stages(most) < kLongRing) --most;
  return most;
}

std::string refusal(const RunnerModel& model, const StepModel& step,
                    const cuda::DeviceInfo& device) {
  const int ranks = model.comm.size();
  if (ranks > 1) return detail::join(ranks, " ranks share the model");
  return StepKernel::refusal(step, device);
}

}  // namespace

StepPath::StepPath(const RunnerModel& model, Stream stream) {
  const EngineOptions& options = model.options;
  if (options.step_kernel == StepKernelChoice::kOff) {
    off_because_ = "step_kernel is off";
    return;
  }
  const StepModel step{model.config,         model.decoder.weights(), model.decoder.rope(),
                       model.cache.layers(), *options.dtype,          options.max_len};
  const cuda::DeviceInfo device = cuda::device_info(cuda::current_device());
  off_because_ = refusal(model, step, device);
  if (off_because_.empty()) {
    kernel_ = std::make_unique<StepKernel>(step, device, stream);
    most_ = std::min(options.max_batch, kernel_->most_tokens());
    if (most_ == 0) {
      kernel_.reset();
      off_because_ = detail::join("a token and a part of ", options.max_len,
                                  " tokens of context do not fit into a multiprocessor's shared "
                                  "memory");
    }
  }
  if (options.step_kernel == StepKernelChoice::kAuto) {
    if (kernel_) most_ = std::min(most_, measured_faster(model, *kernel_));
  } else if (!off_because_.empty()) {
    throw Error(ErrorKind::kConfig,
                detail::join("step_kernel is on, and decode steps of this model cannot run as one "
                             "kernel: ",
                             off_because_),
                {}, "--step-kernel auto, which then runs them op by op");
  }
  are_larger_ = options.max_batch > most_;
}

StepKernel* StepPath::kernel(int64_t sequences) const {
  return sequences <= most_ ? kernel_.get() : nullptr;
}

std::string StepPath::note() const {
  if (!kernel_) return "decode steps run op by op: " + off_because_;
  const std::string sequences =
      most_ == 1 ? "one sequence" : detail::join("up to ", most_, " sequences");
  const bool unpaired = most_ > 1 && !kernel_->pairs();
  return detail::join(
      "decode steps of ", sequences, " run as one kernel",
      are_larger_ ? ", larger ones op by op" : "",
      unpaired ? "; the GPU does not take its blocks in pairs, which is slower" : "");
}

void StepPath::throw_fault() const {
  if (kernel_) kernel_->throw_fault();
}

}  // namespace flexq_ft
