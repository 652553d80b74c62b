// The GPU side of the ops in a build without CUDA.
#include <cstdlib>

#include "ft/core/cuda.h"
#include "ft/kernels/device_sampling.h"
#include "ft/kernels/gpu_gemm.h"
#include "ft/kernels/skinny_gemm.h"
#include "ft/kernels/twins.h"
#include "ft/kernels/w6ax_gemm.h"

namespace flexq_ft::gpu {

namespace {

// Throws: there is no device to use.
[[noreturn]] void refuse() {
  cuda::use_device(0);
  FLEXQ_FT_CHECK(false, "a device in a build without CUDA");
  std::abort();
}

}  // namespace

void residual_norm(const LinearInput&, Tensor, const Product&, const NormArgs&, Stream) {
  refuse();
}
void add_residual(Tensor, const Product&, Stream) { refuse(); }
void activation(const LinearInput&, const Product&, Activation, bool, RowOrder, Stream) {
  refuse();
}
void embedding(Tensor, ConstTensor, ConstTensor, ConstTensor, ConstTensor, Stream) { refuse(); }
void rope_append(Tensor, KvPages, const Product&, ConstTensor, const RaggedBatch&, Stream) {
  refuse();
}
void attention(const LinearInput&, ConstTensor, KvPages, const RaggedBatch&, Tensor, Stream) {
  refuse();
}
size_t attention_workspace_bytes(const AttentionSizes&) { return 0; }  // a plan may ask
void finish_product(Tensor, const Product&, Stream) { refuse(); }
void quantize_activations(const LinearInput&, Stream) { refuse(); }
void repack_rows(Tensor, ConstTensor, int64_t, int64_t, bool, RowOrder, Stream) { refuse(); }
void place_tiles(Tensor, ConstTensor, int64_t, int64_t, RowOrder, Stream) { refuse(); }
void tile_scales(Tensor, ConstTensor, int64_t, Stream) { refuse(); }
void random_fill(Tensor, const RandomFill&, int64_t, Stream) { refuse(); }
void step_inputs(const StepInputs&, ConstTensor, const SlotTensors&, int32_t, Stream) { refuse(); }
void sample(Tensor, Tensor, ConstTensor, const DeviceSlots&, Tensor, Stream) { refuse(); }
bool launch_skinny_float(SkinnyMath, const SkinnyArgs&, const SkinnyConfig&, Stream) { refuse(); }
bool launch_skinny_w8a16(SkinnyMath, const SkinnyArgs&, const SkinnyConfig&, Stream) { refuse(); }
bool launch_skinny_int8(const SkinnyArgs&, const SkinnyConfig&, Stream) { refuse(); }
void pad_columns(Tensor, ConstTensor, Stream) { refuse(); }
void gather_columns(Tensor, ConstTensor, Stream) { refuse(); }

}  // namespace flexq_ft::gpu

namespace flexq_ft {

std::unique_ptr<GpuGemm> make_gpu_gemm(const GpuGemmLimits&) { gpu::refuse(); }
size_t gpu_gemm_workspace_bytes(const GpuGemmLimits&) { return 0; }
std::string explain_w6ax(const flexq_kernels::GemmProblem&) { gpu::refuse(); }
std::unique_ptr<W6axGemm> make_w6ax_gemm() { gpu::refuse(); }
size_t w6ax_gemm_workspace_bytes() { return 0; }

}  // namespace flexq_ft
