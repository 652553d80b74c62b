// The linear layer on a GPU, on the caller's stream: quantise and multiply, or multiply floats.
#include "flexq_kernels/gpu/dequantize.h"
#include "flexq_kernels/gpu/quantize.h"
#include "flexq_kernels/gpu/w6ax_gemm.h"
#include "ft/binding/linear.h"
#include "ft/core/cuda.h"

namespace flexq_ft {

namespace fk = ::flexq_kernels;

namespace {

// Makes a device current, and afterwards the one that was.
class OnDevice {
 public:
  explicit OnDevice(int device) : before_(cuda::current_device()), device_(device) {
    if (device_ != before_) cuda::use_device(device_);
  }
  ~OnDevice() {
    if (device_ == before_) return;
    try {
      cuda::use_device(before_);
    } catch (...) {  // the device is lost, which the call itself has reported or the next one will
    }
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_, device_;
};

}  // namespace

int64_t linear_workspace_bytes(const fk::GemmProblem& problem, int device) {
  const OnDevice on(device);
  return static_cast<int64_t>(fk::gpu::w6ax_workspace_bytes(problem));
}

void linear_gpu(const LinearCall& call, int device) {
  const OnDevice on(device);
  const fk::GemmProblem& problem = call.problem;
  const fk::gpu::Weight w{call.codes, call.scales};
  if (problem.act_bits == 16) {
    return fk::gpu::gemm_w6a16_gpu(call.y, {call.x, call.y.type}, w, problem, {call.stream, false});
  }
  auto* codes = static_cast<int8_t*>(call.scratch);
  auto* scales =
      reinterpret_cast<float*>(codes + problem.m * fk::group_count(problem.k) * fk::kGroupSize);
  const fk::gpu::ActivationBuffers x{codes, scales, fk::gpu::scale_stride_of(problem.m),
                                     fk::gpu::w6ax_code_order(problem)};
  fk::gpu::quantize_activations(x, call.x, call.y.type, problem.m, problem.k, problem.act_bits,
                                {call.stream, false});
  fk::gpu::gemm_w6ax_gpu(call.y, x.view(), w, problem, call.workspace, {call.stream, true});
}

void dequantize_gpu(const LinearCall& call, int device) {
  const OnDevice on(device);
  fk::gpu::dequantize_int6(call.y.values, call.y.type, {call.codes, call.scales}, call.problem.n,
                           call.problem.k, {call.stream, false});
}

}  // namespace flexq_ft
