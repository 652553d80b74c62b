// One launch per source file with instances of the step kernel (step_kernel.cuh), of fp16 or bf16.
#pragma once

#include "ft/core/dtype.h"
#include "ft/core/stream.h"
#include "ft/step/args.h"

namespace flexq_ft::step {

void launch_float_step(DataType dtype, const Args& args, int blocks, Stream stream);
void launch_w8a16_step(DataType dtype, const Args& args, int blocks, Stream stream);
void launch_w8a8_step(DataType dtype, const Args& args, int blocks, Stream stream);
void launch_w6_step(DataType dtype, const Args& args, int blocks, Stream stream);

}  // namespace flexq_ft::step
