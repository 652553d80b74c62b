#include "ft/core/cuda.h"

#include "ft/core/cuda_check.h"

namespace flexq_ft::cuda {

namespace {

cudaStream_t queue_of(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

std::string version(int number) { return detail::join(number / 1000, ".", number % 1000 / 10); }

}  // namespace

bool built() { return true; }

const char* architectures() { return FLEXQ_FT_CUDA_ARCHITECTURES; }

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();  // no driver, or no device: not an error of later calls
  return 0;
}

std::string no_device_cause() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();
  return status == cudaSuccess ? "the driver reports none" : cudaGetErrorString(status);
}

DeviceInfo device_info(int device) {
  cudaDeviceProp p{};
  FLEXQ_FT_CUDA(cudaGetDeviceProperties(&p, device));
  DeviceInfo info;
  info.name = p.name;
  info.major = p.major;
  info.minor = p.minor;
  info.multiprocessors = p.multiProcessorCount;
  info.l2_bytes = static_cast<size_t>(p.l2CacheSize);
  info.shared_bytes = p.sharedMemPerBlockOptin;
  info.total_bytes = p.totalGlobalMem;
  int kilohertz = 0, bits = 0;
  FLEXQ_FT_CUDA(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrMemoryClockRate, device));
  FLEXQ_FT_CUDA(cudaDeviceGetAttribute(&bits, cudaDevAttrGlobalMemoryBusWidth, device));
  info.memory_bytes_per_second = 2.0 * 1000.0 * kilohertz * bits / 8;  // two transfers a clock
  return info;
}

std::string driver_version() {
  int number = 0;
  FLEXQ_FT_CUDA(cudaDriverGetVersion(&number));
  return number == 0 ? "" : version(number);
}

std::string runtime_version() {
  int number = 0;
  FLEXQ_FT_CUDA(cudaRuntimeGetVersion(&number));
  return version(number);
}

bool peer_access(int from, int to) {
  int can = 0;
  FLEXQ_FT_CUDA(cudaDeviceCanAccessPeer(&can, from, to));
  return can != 0;
}

int current_device() {
  int device = 0;
  FLEXQ_FT_CUDA(cudaGetDevice(&device));
  return device;
}

void use_device(int device) { FLEXQ_FT_CUDA(cudaSetDevice(device)); }

size_t free_bytes() {
  size_t free = 0, total = 0;
  FLEXQ_FT_CUDA(cudaMemGetInfo(&free, &total));
  return free;
}

void* allocate(size_t bytes) {
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  FLEXQ_FT_CUDA(status);
  return data;
}

void release(void* data) noexcept { cudaFree(data); }

void* allocate_pinned(size_t bytes) {
  void* data = nullptr;
  const cudaError_t status = cudaMallocHost(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw Error(ErrorKind::kOutOfMemory,
                detail::join("cannot allocate ", bytes, " bytes of pinned memory on the host"), {},
                "end other programs of this host");
  }
  FLEXQ_FT_CUDA(status);
  return data;
}

void release_pinned(void* data) noexcept { cudaFreeHost(data); }

void copy(void* to, const void* from, size_t bytes, Stream stream) {
  if (bytes == 0) return;
  full_edge(stream);
  FLEXQ_FT_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, queue_of(stream)));
}

void fill(void* to, int byte, size_t bytes, Stream stream) {
  if (bytes == 0) return;
  full_edge(stream);
  FLEXQ_FT_CUDA(cudaMemsetAsync(to, byte, bytes, queue_of(stream)));
}

void synchronize(Stream stream) { FLEXQ_FT_CUDA(cudaStreamSynchronize(queue_of(stream))); }

Queue::Queue() {
  cudaStream_t stream = nullptr;
  FLEXQ_FT_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  handle_ = stream;
}

Queue::~Queue() { cudaStreamDestroy(static_cast<cudaStream_t>(handle_)); }

Event::Event(bool timed) {
  cudaEvent_t event = nullptr;
  FLEXQ_FT_CUDA(
      cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming));
  handle_ = event;
}

Event::~Event() { cudaEventDestroy(static_cast<cudaEvent_t>(handle_)); }

void Event::record(Stream stream) {
  FLEXQ_FT_CUDA(cudaEventRecord(static_cast<cudaEvent_t>(handle_), queue_of(stream)));
}

void Event::record_in_graph(Stream stream) {
  full_edge(stream);
  FLEXQ_FT_CUDA(cudaEventRecordWithFlags(static_cast<cudaEvent_t>(handle_), queue_of(stream),
                                         cudaEventRecordExternal));
}

bool Event::done() const {
  const cudaError_t status = cudaEventQuery(static_cast<cudaEvent_t>(handle_));
  if (status == cudaErrorNotReady) return false;
  FLEXQ_FT_CUDA(status);
  return true;
}

void Event::wait() const { FLEXQ_FT_CUDA(cudaEventSynchronize(static_cast<cudaEvent_t>(handle_))); }

float Event::since_ms(const Event& start) const {
  float ms = 0.0f;
  FLEXQ_FT_CUDA(cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(start.handle_),
                                     static_cast<cudaEvent_t>(handle_)));
  return ms;
}

Graph::~Graph() {
  if (captured()) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(handle_));
}

void Graph::capture(Stream stream, const std::function<void()>& work) {
  FLEXQ_FT_CHECK(!captured(), "a graph is captured once");
  full_edge(stream);
  // Relaxed would let an allocation slip into the capture; this mode makes it an error.
  FLEXQ_FT_CUDA(cudaStreamBeginCapture(queue_of(stream), cudaStreamCaptureModeThreadLocal));
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(queue_of(stream), &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  FLEXQ_FT_CUDA(cudaStreamEndCapture(queue_of(stream), &graph));
  full_edge(stream);
  FLEXQ_FT_CUDA(cudaGraphGetNodes(graph, nullptr, &nodes_));
  cudaGraphExec_t exec = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  FLEXQ_FT_CUDA(status);
  handle_ = exec;
}

void Graph::launch(Stream stream) {
  full_edge(stream);
  FLEXQ_FT_CUDA(cudaGraphLaunch(static_cast<cudaGraphExec_t>(handle_), queue_of(stream)));
}

}  // namespace flexq_ft::cuda
