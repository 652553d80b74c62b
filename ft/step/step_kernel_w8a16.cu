#include "ft/step/step_kernel.cuh"

namespace flexq_ft::step {

const StepLaunch kW8A16Step = {&launch_step_of<Format::kW8A16>, &takes_pairs_of<Format::kW8A16>};

}  // namespace flexq_ft::step
