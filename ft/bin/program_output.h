// What the FT programs leave: the file `out` and FT's lines on stdout.
#pragma once

#include <string>

#include "ft/bin/program_config.h"
#include "ft/decoding/generate.h"

namespace flexq_ft {

// One row a request: prompt, output, then pad_id up to total_len.
TokenRows output_rows(const ProgramRequest& request, const GenerateReport& report);

// Written beside, synced and renamed. Throws Error{kConfig} if the folder cannot be written.
void write_out(const std::string& path, const TokenRows& rows, const char* separator);

void print_ranks(int ranks);
void print_device(const ProgramStyle& style, int rank, int local_rank, Device device);
void print_memory(Device device);       // of the host, or of the GPU in use
void print_ids(const TokenRows& rows);  // "Writing …", the first ten ids, "zeroCount = …"
void print_time(const ProgramRequest& request, const ModelConfig& model, double milliseconds);

// Ours, after FT's: prefill and decode apart, and memory as the operating system counted it.
struct SplitTotals {  // over the timed iterations
  int64_t iterations = 0;
  int64_t prompt_tokens = 0;
  int64_t decode_tokens = 0;
  double prefill_s = 0.0;
  double decode_s = 0.0;
  double waits_s = 0.0;  // of each request, from its first token to its last
  int64_t waits = 0;     // tokens that were waited for so

  void add(const GenerateReport& report);
};

void print_split(const SplitTotals& totals, int threads);
void print_peak_memory(int rank);

// Throws Error{kInternal} if some of what was printed is lost, as on a full disk.
void check_stdout();

}  // namespace flexq_ft
