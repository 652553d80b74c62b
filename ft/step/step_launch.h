// What a source file with instances of the step kernel (step_kernel.cuh) offers, of fp16 or bf16.
#pragma once

#include "ft/core/dtype.h"
#include "ft/core/stream.h"
#include "ft/step/args.h"

namespace flexq_ft::step {

struct StepLaunch {
  void (*launch)(DataType dtype, const Args& args, int blocks, Stream stream);
  // Whether the GPU holds so many blocks at once as pairs (pair.cuh), with this much shared memory.
  bool (*takes_pairs)(DataType dtype, int shared_bytes, int blocks);
};

extern const StepLaunch kFloatStep, kW8A16Step, kW8A8Step, kW6Step;

}  // namespace flexq_ft::step
