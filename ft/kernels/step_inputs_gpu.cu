#include "ft/kernels/launch.cuh"
#include "ft/kernels/step_inputs.h"
#include "ft/kernels/twins.h"

namespace flexq_ft::gpu {

namespace {

constexpr int kThreads = 128;

struct StepInputsArgs {
  int32_t* ids;
  int32_t* positions;
  int32_t* offsets;
  int32_t* context;
  int32_t* pages;
  int32_t* token_rows;
  int32_t* row_slots;
  const StepInputItem* items;
  const int32_t* history;
  const int32_t* tokens;
  const int32_t* finished;
  const int32_t* slot_pages;
  int64_t max_len;
  int64_t max_pages;
  int32_t scratch_page;
};

// One block per sequence.
__global__ void __launch_bounds__(kThreads) step_inputs_kernel(const StepInputsArgs a) {
  pdl_launch_dependents();
  pdl_wait();
  const int s = static_cast<int>(blockIdx.x);
  const StepInputItem item = a.items[s];
  const bool idle = item.slot < 0 || a.finished[item.slot] != 0;
  int32_t begin = item.begin;
  if (!idle && begin == StepInputItem::kNewestToken) begin = a.tokens[item.slot] - 1;
  if (idle) begin = 0;

  const int32_t* history = a.history + (idle ? 0 : item.slot) * a.max_len;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < item.count; i += kThreads) {
    a.ids[item.first + i] = idle ? 0 : history[begin + i];
    a.positions[item.first + i] = begin + i;
  }
  const int32_t* pages = a.slot_pages + (idle ? 0 : item.slot) * a.max_pages;
  for (int64_t i = threadIdx.x; i < a.max_pages; i += kThreads) {
    a.pages[s * a.max_pages + i] = idle ? a.scratch_page : pages[i];
  }
  if (threadIdx.x != 0) return;
  a.context[s] = begin;
  a.offsets[s] = item.first;
  if (s + 1 == static_cast<int>(gridDim.x)) a.offsets[s + 1] = item.first + item.count;
  if (item.logit_row < 0) return;
  a.token_rows[item.logit_row] = item.first + item.count - 1;
  a.row_slots[item.logit_row] = idle ? -1 : item.slot;
}

int32_t* ints(const Tensor& t) { return static_cast<int32_t*>(t.raw()); }
const int32_t* ints(const ConstTensor& t) { return static_cast<const int32_t*>(t.raw()); }

}  // namespace

void step_inputs(const StepInputs& out, ConstTensor items, const SlotTensors& slots,
                 int32_t scratch_page, Stream stream) {
  StepInputsArgs args{};
  args.ids = ints(out.ids);
  args.positions = ints(out.positions);
  args.offsets = ints(out.offsets);
  args.context = ints(out.context);
  args.pages = ints(out.pages);
  args.token_rows = ints(out.token_rows);
  args.row_slots = ints(out.row_slots);
  args.items = static_cast<const StepInputItem*>(items.raw());
  args.history = ints(slots.history);
  args.tokens = ints(slots.tokens);
  args.finished = ints(slots.finished);
  args.slot_pages = ints(slots.pages);
  args.max_len = slots.history.dim(1);
  args.max_pages = slots.pages.dim(1);
  args.scratch_page = scratch_page;
  launch(step_inputs_kernel, dim3(static_cast<unsigned>(items.dim(0))), dim3(kThreads), 0, stream,
         args);
}

}  // namespace flexq_ft::gpu
