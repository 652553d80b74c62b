#include "ft/step/step_kernel.cuh"

namespace flexq_ft::step {

const StepLaunch kW6Step = {&launch_step_of<Format::kW6>, &takes_pairs_of<Format::kW6>};

}  // namespace flexq_ft::step
