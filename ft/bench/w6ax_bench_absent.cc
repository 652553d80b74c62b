#include "ft/bench/quantizer_bench.h"
#include "ft/bench/w6ax_bench.h"
#include "ft/core/cuda.h"
#include "ft/core/error.h"

namespace flexq_ft {

namespace {

[[noreturn]] void refuse() {
  throw Error(ErrorKind::kDevice, "there is no GPU to measure on", cuda::no_device_cause());
}

}  // namespace

std::unique_ptr<W6axBench> make_w6ax_bench(const W6axBenchOptions&) { refuse(); }

QuantizerTimes measure_quantizers(int64_t, int64_t, int, int, int) { refuse(); }

}  // namespace flexq_ft
