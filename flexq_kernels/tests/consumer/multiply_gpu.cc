// The same layer on a GPU: the weight is packed on the CPU and uploaded, the input is quantised and
// multiplied on a stream.
#include <cuda_runtime_api.h>
#include <flexq_kernels/gpu/quantize.h>
#include <flexq_kernels/gpu/w6ax_gemm.h>

#include <algorithm>
#include <cstdio>

#include "layer.h"

namespace {

constexpr int kSkipped = 77;

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

// Device memory of so many values, zero at first; cudaMalloc aligns it to 256 bytes.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t count) : bytes_(static_cast<size_t>(count) * sizeof(T)) {
    check(cudaMalloc(&data_, bytes_));
    check(cudaMemset(data_, 0, bytes_));
  }
  explicit DeviceArray(const std::vector<T>& from)
      : DeviceArray(static_cast<int64_t>(from.size())) {
    check(cudaMemcpy(data_, from.data(), bytes_, cudaMemcpyHostToDevice));
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return static_cast<T*>(data_); }

 private:
  size_t bytes_;
  void* data_ = nullptr;
};

int multiply() {
  const Layer layer;
  const fk::GemmProblem& problem = layer.problem;
  const int64_t m = layer.m, n = layer.n, k = layer.k;

  // Once per weight: the codes are the CPU's, the scales tiled.
  std::vector<uint16_t> tiled(fk::tiled_scale_count(n, k));
  fk::tile_scales(tiled.data(), layer.scales.data(), n, k);
  const DeviceArray<uint8_t> codes(layer.packed);
  const DeviceArray<uint16_t> scales(tiled);

  // Once per shape: memory for the input's codes, in the order that the kernel of this shape reads,
  // and a workspace, of zeros, for each stream.
  const int64_t stride = fk::gpu::scale_stride_of(m);
  const DeviceArray<int8_t> x_codes(m * layer.groups * fk::kGroupSize);
  const DeviceArray<float> x_scales(layer.groups * stride);
  const fk::gpu::ActivationBuffers input{x_codes.data(), x_scales.data(), stride,
                                         fk::gpu::w6ax_code_order(problem)};
  const DeviceArray<uint8_t> workspace(static_cast<int64_t>(fk::gpu::w6ax_workspace_bytes()));

  // Once per input: two kernels on the stream. Both are the library's, so the second one may be a
  // programmatic launch.
  const DeviceArray<float> x(layer.x), y(m * n);
  void* const stream = nullptr;  // a cudaStream_t
  fk::gpu::quantize_activations(input, x.data(), fk::FloatType::kFp32, m, k, problem.act_bits,
                                {stream, false});
  fk::gpu::gemm_w6ax_gpu({y.data(), fk::FloatType::kFp32}, input.view(),
                         {codes.data(), scales.data()}, problem, workspace.data(), {stream, true});
  std::vector<float> got(m * n);
  check(cudaMemcpy(got.data(), y.data(), got.size() * sizeof(float), cudaMemcpyDeviceToHost));

  // The integers are the CPU's; the sums of groups are rounded in another order.
  const std::vector<float> want = layer.multiply();
  float error = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error = std::max(error, std::fabs(got[i] - want[i]));
    size = std::max(size, std::fabs(want[i]));
  }
  std::printf("%s: %.1e of the largest output off the CPU's\n",
              fk::gpu::w6ax_choice(problem).c_str(), error / size);
  return error <= 1e-5f * size ? 0 : 1;
}

}  // namespace

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no GPU here\n");
    return kSkipped;
  }
  return multiply();
}
