// StepPath: which decode steps run as one kernel (ft/step/step_kernel.h), which op by op, and why.
#pragma once

#include <memory>
#include <string>

#include "ft/decoding/step_runner.h"
#include "ft/step/step_kernel.h"

namespace flexq_ft {

class StepPath {
 public:
  // Of a model on the current GPU. Throws Error{kConfig} if options.step_kernel is kOn and the
  // model or the GPU is none that the kernel takes.
  StepPath(const RunnerModel& model, Stream stream);

  // That runs a decode step of so many sequences; null: it runs op by op.
  StepKernel* kernel(int64_t sequences) const;

  // Sequences of the largest step that runs as one kernel; 0: none does.
  int64_t most() const { return most_; }

  // "decode steps of one sequence run as one kernel, larger ones op by op", or "decode steps run op
  // by op: …".
  std::string note() const;

  // Once the device has failed: throws what the kernel knows of it, else returns.
  void throw_fault() const;

 private:
  std::string off_because_;  // not empty: there is no kernel
  std::unique_ptr<StepKernel> kernel_;
  int64_t most_ = 0;
  bool are_larger_ = false;  // steps than that
};

}  // namespace flexq_ft
