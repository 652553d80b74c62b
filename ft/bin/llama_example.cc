// llama_example [INI [START_IDS]]: FT's example program for LLaMA models; see configs/ for the INI.
#include "ft/bin/program.h"

int main(int argc, char** argv) {
  return flexq_ft::run_program(flexq_ft::kLlamaExample, argc, argv);
}
