#include "ft/kernels/step_inputs.h"

#include "ft/kernels/twins.h"

namespace flexq_ft {

void invokeStepInputs(const StepInputs& out, ConstTensor items, const SlotTensors& slots,
                      int32_t scratch_page, Stream stream) {
  const int64_t sequences = items.dim(0);
  FLEXQ_FT_CHECK_EQ(items.shape(), (Shape{sequences, kStepInputInts}), "step inputs: items");
  FLEXQ_FT_CHECK_EQ(out.positions.shape(), out.ids.shape(), "step inputs: positions");
  FLEXQ_FT_CHECK_EQ(out.offsets.shape(), (Shape{sequences + 1}), "step inputs: offsets");
  FLEXQ_FT_CHECK_EQ(out.context.shape(), (Shape{sequences}), "step inputs: context");
  FLEXQ_FT_CHECK_EQ(out.pages.shape(), (Shape{sequences, slots.pages.dim(1)}),
                    "step inputs: pages");
  FLEXQ_FT_CHECK_EQ(out.row_slots.shape(), out.token_rows.shape(), "step inputs: logit rows");
  if (sequences > 0) gpu::step_inputs(out, items, slots, scratch_page, stream);
}

}  // namespace flexq_ft
