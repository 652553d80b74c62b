#include "ft/step/step_kernel.cuh"

namespace flexq_ft::step {

const StepLaunch kW8A8Step = {&launch_step_of<Format::kW8A8>, &takes_pairs_of<Format::kW8A8>};

}  // namespace flexq_ft::step
