#include "ft/step/step_kernel.cuh"

namespace flexq_ft::step {

const StepLaunch kFloatStep = {&launch_step_of<Format::kFloat>, &takes_pairs_of<Format::kFloat>};

}  // namespace flexq_ft::step
