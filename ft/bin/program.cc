#include "ft/bin/program.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <new>
#include <string>

#include "ft/bin/program_device.h"
#include "ft/bin/program_output.h"
#include "ft/comm/host_bootstrap.h"
#include "ft/comm/mpi_library.h"
#include "ft/core/check.h"

namespace flexq_ft {

using detail::join;

namespace {

namespace fs = std::filesystem;

struct Prepared {
  std::string ini_path;
  ProgramConfig config;
  ModelFolder folder;
  ProgramRequest request;
  EngineOptions options;
};

void print_error(const Error& error, const HostBootstrap* host) {
  std::fprintf(stderr, "error: %s\n", error.what());
  if (host != nullptr && host->size() > 1) {
    char name[256] = "";
    gethostname(name, sizeof(name) - 1);
    std::fprintf(stderr, "  rank:  %d on %s\n", host->rank(), name);
  }
  if (!error.cause().empty()) std::fprintf(stderr, "  cause: %s\n", error.cause().c_str());
  if (!error.hint().empty()) std::fprintf(stderr, "  Try:   %s\n", error.hint().c_str());
}

// Runs f; prints what it throws. Returns the exit code.
template <typename F>
int guarded(const HostBootstrap* host, F&& f) {
  try {
    f();
    return 0;
  } catch (const Error& error) {
    print_error(error, host);
    return exit_code(error.kind());
  } catch (const std::bad_alloc&) {
    print_error(Error(ErrorKind::kOutOfMemory, "out of memory"), host);
    return exit_code(ErrorKind::kOutOfMemory);
  } catch (const std::exception& error) {
    print_error(Error(ErrorKind::kInternal, error.what()), host);
    return exit_code(ErrorKind::kInternal);
  }
}

// The shipped INI: of the environment that bin/ belongs to, or of the sources around a build tree.
fs::path default_ini(const ProgramStyle& style) {
  std::error_code ignored;
  const fs::path bin = fs::read_symlink("/proc/self/exe", ignored).parent_path();
  const fs::path installed = bin.parent_path() / "share" / "flexq_ft" / "configs";
  const fs::path sources = bin.parent_path().parent_path() / "configs";
  return (fs::exists(installed, ignored) ? installed : sources) / style.default_ini;
}

// tensor_para_size, the folder and the number of ranks must be one number.
void check_world(const Prepared& prepared, const ProgramStyle& style, int ranks) {
  const int64_t asked = prepared.config.tensor_para_size;
  if (asked != prepared.folder.tp) {
    throw Error(
        ErrorKind::kConfig,
        join("tensor_para_size is ", asked, ", but ", prepared.config.model_dir, " was made for ",
             prepared.folder.tp, prepared.folder.tp == 1 ? " rank" : " ranks"),
        "", join("flexq-ft convert HF_DIR OUT --tp ", asked));
  }
  if (asked == ranks) return;
  if (ranks == 1) open_mpi_library();  // without it the command below would not help
  throw Error(
      ErrorKind::kConfig,
      join("tensor_para_size is ", asked, ", but the world has ", ranks,
           ranks == 1 ? " rank" : " ranks"),
      "",
      join(asked > 1 ? join("mpirun -n ", asked, " ") : "", style.name, " ", prepared.ini_path));
}

Prepared prepare(const ProgramStyle& style, int argc, char** argv, int ranks) {
  if (argc > 3) {
    throw Error(ErrorKind::kConfig, join("3 or more arguments given to ", style.name), "",
                join(style.name, " [INI [START_IDS]]"));
  }
  Prepared prepared;
  const fs::path ini_path = argc > 1 ? fs::path(argv[1]) : default_ini(style);
  prepared.ini_path = ini_path.string();
  const IniFile ini = IniFile::read(prepared.ini_path, ErrorKind::kConfig);
  prepared.config = read_program_config(ini, style);
  const std::string& model_dir = prepared.config.model_dir;
  if (!fs::is_directory(model_dir)) {
    throw Error(ErrorKind::kConfig, join("model_dir '", model_dir, "' is not a folder"),
                "relative paths start at the current directory",
                "set model_dir in " + prepared.ini_path);
  }
  prepared.folder = open_model_folder(model_dir);
  check_model_section(ini, style, prepared.folder);
  check_world(prepared, style, ranks);
  const fs::path start_ids =
      argc > 2 ? fs::path(argv[2]) : ini_path.parent_path() / "start_ids.csv";
  prepared.request = make_request(prepared.config, prepared.folder, start_ids.string());
  prepared.options = make_engine_options(prepared.config, prepared.folder, prepared.request);
  return prepared;
}

void run(const Prepared& prepared, const ProgramStyle& style, HostBootstrap& host) {
  const bool first = host.rank() == 0;
  EngineOptions options = prepared.options;
  place(prepared.config, prepared.folder, host, &options);
  if (first) print_ranks(host.size());
  print_device(style, host.rank(), host.local_rank(), options.device);
  Engine engine(prepared.config.model_dir, options, make_comm(options, host));
  if (first) print_memory(options.device);

  std::vector<GenerateRequest> requests;
  for (const auto& prompt : prepared.request.prompts) {
    requests.push_back({prompt, prepared.request.sampling});
  }
  const GenerateReport report = generate(engine, requests);  // FT's warm-up, which gives `out`
  if (first) {
    const TokenRows rows = output_rows(prepared.request, report);
    write_out("out", rows, style.separator);
    print_ids(rows);
  }
  host.barrier();
  SplitTotals totals;
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < prepared.config.timed_iterations; ++i) {
    totals.add(generate(engine, requests));
  }
  const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - begin;
  host.barrier();
  print_time(prepared.request, prepared.folder.config,
             time.count() / static_cast<double>(prepared.config.timed_iterations));
  if (first) print_split(totals, engine.options().threads);
  print_peak_memory(host.rank());
  check_stdout();
}

// A program started without a standard stream (>&-) would open its own files as number 0, 1 or 2.
void hold_standard_streams() {
  for (const int number : {0, 1, 2}) {
    if (fcntl(number, F_GETFD) < 0) (void)open("/dev/null", O_RDWR);
  }
}

// By default libgomp's waiting threads spin for milliseconds; beside one other busy process that
// makes a token a hundred times slower. libgomp reads its settings when it is loaded, before main,
// so the program starts itself again with them, once; where that fails it goes on as it is.
void set_waiting(char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") || std::getenv("GOMP_SPINCOUNT")) return;
  setenv("GOMP_SPINCOUNT", "1000", 1);
  execv("/proc/self/exe", argv);
}

}  // namespace

int run_program(const ProgramStyle& style, int argc, char** argv) {
  hold_standard_streams();
  set_waiting(argv);
  if (argc > 1 && (std::string(argv[1]) == "-h" || std::string(argv[1]) == "--help")) {
    std::printf("usage: %s [INI [START_IDS]]\nwithout INI: %s\n", style.name,
                default_ini(style).c_str());
    return 0;
  }
  std::unique_ptr<HostBootstrap> host;
  if (const int code = guarded(nullptr, [&] { host = make_host_bootstrap(); })) return code;
  // What the user typed is judged once, by rank 0; the others end with its verdict.
  Prepared prepared;
  int code = 0;
  const auto prepare_here = [&] { prepared = prepare(style, argc, argv, host->size()); };
  if (host->rank() == 0) code = guarded(host.get(), prepare_here);
  host->broadcast(&code, sizeof(code), 0);
  if (code != 0) return code;
  code = guarded(host.get(), [&] {
    if (host->rank() != 0) prepare_here();
    run(prepared, style, *host);
  });
  if (code != 0) host->abort(code);  // the others may wait for this rank inside a collective
  return 0;
}

}  // namespace flexq_ft
