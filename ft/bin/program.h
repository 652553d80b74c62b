// The common course of llama_example and multi_gpu_gpt_example: FT's INI and CSV files in, the file
// `out` and FT's lines out, on one rank or as many as mpirun starts.
#pragma once

#include "ft/bin/program_config.h"

namespace flexq_ft {

// usage: PROGRAM [INI [START_IDS]]. Returns the exit code; errors are printed to stderr.
int run_program(const ProgramStyle& style, int argc, char** argv);

}  // namespace flexq_ft
