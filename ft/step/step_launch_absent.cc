// A build without CUDA has no step kernel, and no device that would ask for it.
#include "ft/core/error.h"
#include "ft/step/row_map.h"
#include "ft/step/step_launch.h"

namespace flexq_ft::step {

namespace {

[[noreturn]] void refuse() {
  throw Error(ErrorKind::kDevice, "this build of flexq-ft has no CUDA kernels");
}

}  // namespace

int make_row_map(RowMap*, const void*, int64_t, int64_t) { refuse(); }
void make_page_map(RowMap*, ConstTensor) { refuse(); }

namespace {

constexpr StepLaunch kAbsent = {[](DataType, const Args&, int, Stream) { refuse(); },
                                [](DataType, int, int) -> bool { refuse(); }};

}  // namespace

const StepLaunch kFloatStep = kAbsent, kW8A16Step = kAbsent, kW8A8Step = kAbsent, kW6Step = kAbsent;

}  // namespace flexq_ft::step
