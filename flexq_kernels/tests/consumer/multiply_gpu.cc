// The same layer on a GPU: the weight is packed on the CPU and uploaded, the input is quantised and
// multiplied on a stream.
#include <cuda_runtime_api.h>
#include <flexq_kernels/gemm.h>
#include <flexq_kernels/gpu/quantize.h>
#include <flexq_kernels/gpu/w6ax_gemm.h>
#include <flexq_kernels/pack.h>
#include <flexq_kernels/quantize.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <vector>

namespace fk = flexq_kernels;

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
  const fk::GemmProblem problem{3, 24, 300, 8};  // y [3, 24] = x [3, 300] · w [24, 300]ᵀ
  const int64_t m = problem.m, n = problem.n, k = problem.k, groups = fk::group_count(k);
  std::vector<float> w(n * k), x(m * k);
  for (size_t i = 0; i < w.size(); ++i) w[i] = std::sin(static_cast<float>(i));
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::cos(static_cast<float>(i) * 0.7f);

  // Once per weight: codes and scales as on the CPU (multiply.cc), the scales tiled.
  std::vector<int8_t> codes(n * k);
  std::vector<uint16_t> row_scales(n * groups), scales(groups * n);
  if (fk::quantize_weight_int6(codes.data(), row_scales.data(), w.data(), n, k)) return 1;
  for (int64_t i = 0; i < n * groups; ++i) scales[i % groups * n + i / groups] = row_scales[i];
  std::vector<uint8_t> packed(fk::packed_bytes(n, k));
  fk::pack_int6(packed.data(), codes.data(), n, k);
  std::vector<uint16_t> tiled(fk::tiled_scale_count(n, k));
  fk::tile_scales(tiled.data(), scales.data(), n, k);
  const DeviceArray<uint8_t> device_codes(packed);
  const DeviceArray<uint16_t> device_scales(tiled);

  // Once per shape: memory for the input's codes, in the order that the kernel of this shape reads,
  // and a workspace, of zeros, for each stream.
  const int64_t stride = fk::gpu::scale_stride_of(m);
  const DeviceArray<int8_t> x_codes(m * groups * fk::kGroupSize);
  const DeviceArray<float> x_scales(groups * stride);
  const fk::gpu::ActivationBuffers input{x_codes.data(), x_scales.data(), stride,
                                         fk::gpu::w6ax_code_order(problem)};
  const auto workspace_bytes = static_cast<int64_t>(fk::gpu::w6ax_workspace_bytes());
  const DeviceArray<uint8_t> workspace(workspace_bytes);

  // Once per input: two kernels on the stream. Both are the library's, so the second one may be a
  // programmatic launch.
  const DeviceArray<float> device_x(x), device_y(m * n);
  void* const stream = nullptr;  // a cudaStream_t
  fk::gpu::quantize_activations(input, device_x.data(), fk::FloatType::kFp32, m, k,
                                problem.act_bits, {stream, false});
  fk::gpu::gemm_w6ax_gpu({device_y.data(), fk::FloatType::kFp32}, input.view(),
                         {device_codes.data(), device_scales.data()}, problem, workspace.data(),
                         {stream, true});
  std::vector<float> y(m * n);
  check(cudaMemcpy(y.data(), device_y.data(), y.size() * sizeof(float), cudaMemcpyDeviceToHost));

  // The CPU's integers are the same; its sums of groups are rounded in another order.
  std::vector<int8_t> host_codes(m * groups * fk::kGroupSize);
  std::vector<float> host_scales(m * groups), want(m * n);
  fk::quantize_activations(host_codes.data(), host_scales.data(), x.data(), fk::FloatType::kFp32, m,
                           k, fk::kGroupSize, problem.act_bits);
  fk::gemm_w6ax(want.data(), {host_codes.data(), host_scales.data()},
                {packed.data(), scales.data()}, nullptr, problem);
  float error = 0, size = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    error = std::max(error, std::fabs(y[i] - want[i]));
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
