// What ft/core/cuda.h is in a build without CUDA.
#include "ft/core/check.h"
#include "ft/core/cuda.h"

namespace flexq_ft::cuda {

namespace {

[[noreturn]] void refuse() {
  throw Error(ErrorKind::kDevice, "this build of flexq-ft has no CUDA",
              "it was built with FLEXQ_FT_CUDA=OFF, or without nvcc",
              "install it again with nvcc on the PATH and --config-settings "
              "cmake.define.FLEXQ_FT_CUDA=ON, or use --device cpu");
}

}  // namespace

bool built() { return false; }
const char* architectures() { return ""; }
int device_count() { return 0; }
std::string no_device_cause() { return "this build of flexq-ft has no CUDA"; }
DeviceInfo device_info(int) { refuse(); }
std::string driver_version() { return ""; }
std::string runtime_version() { return ""; }
bool peer_access(int, int) { refuse(); }
int current_device() { refuse(); }
void use_device(int) { refuse(); }
size_t free_bytes() { refuse(); }
void* allocate(size_t) { refuse(); }
void release(void*) noexcept {}
void* allocate_pinned(size_t) { refuse(); }
void release_pinned(void*) noexcept {}
void copy(void*, const void*, size_t, Stream) { refuse(); }
void fill(void*, int, size_t, Stream) { refuse(); }
void synchronize(Stream) { refuse(); }
Queue::Queue() { refuse(); }
Queue::~Queue() = default;
Event::Event(bool) { refuse(); }
Event::~Event() = default;
void Event::record(Stream) { refuse(); }
void Event::record_in_graph(Stream) { refuse(); }
bool Event::done() const { refuse(); }
void Event::wait() const { refuse(); }
float Event::since_ms(const Event&) const { refuse(); }
Graph::~Graph() = default;
void Graph::capture(Stream, const std::function<void()>&) { refuse(); }
void Graph::launch(Stream) { refuse(); }

}  // namespace flexq_ft::cuda
