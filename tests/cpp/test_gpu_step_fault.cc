// A block that withholds its results: the others' waits end, and the error says where. The GPU's
// context is lost with it, so this is a program of its own.
#include "ft/bench/step_case.h"
#include "ft/core/error.h"
#include "tests/cpp/check.h"
#include "tests/cpp/folder_fixture.h"
#include "tests/cpp/gpu_arrays.h"

using namespace flexq_test;

TEST(a_wait_that_lasts_too_long_names_op_layer_and_block) {
  if (without_gpu()) return;
  const cuda::DeviceInfo device = cuda::device_info(cuda::current_device());
  if (device.major != 9) return;
  ModelConfig config = small_llama();
  config.num_heads = config.num_kv_heads = 4;
  config.head_dim = 64;
  config.hidden_size = 256;
  config.inter_size = 512;
  config.num_layers = 2;
  EngineOptions options;
  options.dtype = DataType::kFp16;
  options.scheme = Scheme::kFloat;
  options.device = Device::kCuda;
  options.max_len = 32;
  auto* model = new StepCase(  // it is not freed: a lost context frees nothing
      make_folder("no/such/folder", config, Scheme::kFloat, DataType::kFp16, 1), options, {7});
  auto* kernel = new StepKernel(model->model(), device, model->stream());
  kernel->set_patience_ms(50);
  // Op 7 is the o product of layer 1; up waits for it.
  kernel->set_disturbance({0, 0, 7});
  EXPECT_THROW(
      {
        kernel->run(model->logits(1), model->batch(0, 1), model->stream());
        try {
          cuda::synchronize(model->stream());
        } catch (const Error&) {
          kernel->throw_fault();
          throw;
        }
      },
      Error, " of layer 1, thread block");
}
