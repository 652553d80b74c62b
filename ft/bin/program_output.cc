#include "ft/bin/program_output.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>

#include "ft/core/buffer.h"
#include "ft/core/check.h"
#include "ft/core/cuda.h"

namespace flexq_ft {

namespace {

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;

// "model name : …" of the first core; other architectures do not say.
std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "CPU";
}

// A line of /proc/meminfo, in GiB; 0 where there is none.
double meminfo(const std::string& key) {
  std::ifstream info("/proc/meminfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind(key + ":", 0) == 0) return std::stod(line.substr(key.size() + 1)) * 1024 / kGiB;
  }
  return 0.0;
}

double per_second(int64_t count, double seconds) { return seconds > 0 ? count / seconds : 0.0; }

}  // namespace

TokenRows output_rows(const ProgramRequest& request, const GenerateReport& report) {
  TokenRows rows = request.prompts;
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::vector<int64_t>& tokens = report.results[i].tokens;
    rows[i].insert(rows[i].end(), tokens.begin(), tokens.end());
    rows[i].resize(static_cast<size_t>(request.total_len), request.pad_id);
  }
  return rows;
}

void write_out(const std::string& path, const TokenRows& rows, const char* separator) {
  const std::string partial = path + ".partial";
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(partial.c_str(), "w"),
                                                       std::fclose);
  bool ok = file != nullptr;
  for (size_t i = 0; ok && i < rows.size(); ++i) {
    for (const int64_t id : rows[i]) {
      std::fprintf(file.get(), "%lld%s", static_cast<long long>(id), separator);
    }
    std::fputc('\n', file.get());
  }
  ok = ok && std::fflush(file.get()) == 0 && std::ferror(file.get()) == 0 &&
       fsync(fileno(file.get())) == 0 && std::rename(partial.c_str(), path.c_str()) == 0;
  if (!ok) {
    const std::string cause = std::strerror(errno);
    std::remove(partial.c_str());
    throw Error(ErrorKind::kConfig, "cannot write the file '" + path + "' in the current directory",
                cause, "run the program in a folder that you may write to");
  }
}

void print_ranks(int ranks) { std::printf("Total ranks: %d.\n", ranks); }

void print_device(const ProgramStyle& style, int rank, int local_rank, Device device) {
  const bool gpu = device == Device::kCuda;
  const std::string name =
      "Device " + (gpu ? cuda::device_info(local_rank).name : cpu_name()) + "\n";
  std::printf("%sP%d is running with %s #%d.\n%s", style.device_line_first ? name.c_str() : "",
              rank, gpu ? "GPU" : "CPU", local_rank, style.device_line_first ? "" : name.c_str());
  std::fflush(stdout);
}

void print_memory(Device device) {
  const bool gpu = device == Device::kCuda;
  const double total =
      gpu ? cuda::device_info(cuda::current_device()).total_bytes / kGiB : meminfo("MemTotal");
  const double free = gpu ? cuda::free_bytes() / kGiB : meminfo("MemAvailable");
  std::printf("%-20s: free: %5.2f GB, total: %5.2f GB, used: %5.2f GB\n", "after allocation", free,
              total, total - free);
}

void print_ids(const TokenRows& rows) {
  size_t count = 0;
  size_t zeros = 0;
  std::string first;
  for (const auto& row : rows) {
    for (const int64_t id : row) {
      char text[32];
      std::snprintf(text, sizeof(text), "%5lld ", static_cast<long long>(id));
      if (count++ < 10) first += text;
      zeros += id == 0 ? 1 : 0;
    }
  }
  std::printf("Writing %zu elements\n%s\nzeroCount = %zu\n", count, first.c_str(), zeros);
  std::fflush(stdout);
}

void print_time(const ProgramRequest& request, const ModelConfig& model, double milliseconds) {
  std::printf(
      "[INFO] request_batch_size %ld beam_width %ld head_num %ld size_per_head %ld "
      "total_output_len %ld decoder_layers %ld vocab_size %ld "
      "FT-CPP-decoding-beamsearch-time %.2f ms\n",
      static_cast<long>(request.prompts.size()), 1L, static_cast<long>(model.num_heads),
      static_cast<long>(model.head_dim), static_cast<long>(request.total_len),
      static_cast<long>(model.num_layers), static_cast<long>(model.vocab_size), milliseconds);
  std::fflush(stdout);
}

void SplitTotals::add(const GenerateReport& report) {
  ++iterations;
  prompt_tokens += report.prefill_tokens;
  decode_tokens += report.decode_tokens;
  prefill_s += report.prefill_s;
  decode_s += report.decode_s;
  for (const GenerateResult& result : report.results) {
    waits_s += result.decode_s;
    waits += static_cast<int64_t>(result.tokens.size()) - 1;
  }
}

void print_split(const SplitTotals& totals, int threads) {
  std::printf("[INFO] prefill %.2f ms, %.2f tokens/s (%ld tokens)\n",
              totals.prefill_s * 1e3 / totals.iterations,
              per_second(totals.prompt_tokens, totals.prefill_s),
              static_cast<long>(totals.prompt_tokens / totals.iterations));
  std::printf("[INFO] decode %.2f ms/token, %.2f tokens/s (%ld tokens), %d threads\n",
              totals.waits > 0 ? totals.waits_s * 1e3 / totals.waits : 0.0,
              per_second(totals.decode_tokens, totals.decode_s),
              static_cast<long>(totals.decode_tokens / totals.iterations), threads);
  std::fflush(stdout);
}

void print_peak_memory(int rank) {
  std::printf("[INFO] P%d peak memory %.1f MB\n", rank, peak_resident_bytes() * 1024 / kGiB);
  std::fflush(stdout);
}

void check_stdout() {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return;
  throw Error(ErrorKind::kInternal, "stdout cannot be written, and what was printed is lost",
              "the disk that it goes to may be full");
}

}  // namespace flexq_ft
