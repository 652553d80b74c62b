#include "ft/step/step_kernel.cuh"

namespace flexq_ft::step {

void launch_float_step(DataType dtype, const Args& args, int blocks, Stream stream) {
  launch_step_of<Format::kFloat>(dtype, args, blocks, stream);
}

}  // namespace flexq_ft::step
