#include "ft/bench/quantizer_bench.h"

#include <functional>
#include <vector>

#include "ft/bench/w6ax_operands.h"
#include "ft/core/cuda.h"
#include "ft/kernels/activation.h"
#include "ft/kernels/norm.h"
#include "ft/kernels/timed_graph.h"

namespace flexq_ft {

namespace {

class QuantizerBench {
 public:
  QuantizerBench(int64_t m, int64_t k, int act_bits)
      : m_(m),
        k_(k),
        act_bits_(act_bits),
        groups_(fk::group_count(k)),
        x_(random_buffer(DataType::kFp16, {m, k}, 1, queue_.stream())),
        weight_(random_buffer(DataType::kFp16, {k}, 2, queue_.stream())),
        product_(random_buffer(DataType::kFp32, {m, 2 * k}, 3, queue_.stream())),
        values_(device_buffer(DataType::kFp16, {m, k})),
        codes_(device_buffer(DataType::kInt8, {m, groups_ * fk::kGroupSize})),
        scales_(device_buffer(DataType::kFp32, {groups_, fg::scale_stride_of(m)})) {}

  void alone() {
    const Stream stream = queue_.stream();
    const fg::ActivationBuffers out{static_cast<int8_t*>(codes_.data()),
                                    static_cast<float*>(scales_.data()), fg::scale_stride_of(m_),
                                    fg::CodeOrder::kFragment};
    fg::quantize_activations(out, x_.data(), fk::FloatType::kFp16, m_, k_, act_bits_,
                             {stream.handle, true});
  }

  void norm(bool codes) {
    const NormArgs args{NormType::kRms, weight_.tensor(), {}, 1e-5f};
    invokeResidualNorm(output(codes), x_.tensor(), {}, args, queue_.stream());
  }

  void activation(bool codes) {
    const Product product{product_.tensor(), {}, {}, {}};
    invokeGatedActivation(output(codes), product, RowOrder{k_}, Activation::kSilu, queue_.stream());
  }

  double measure(const std::function<void()>& launch, int launches, int replays) {
    launch();  // of the first one in a graph nothing runs in front
    TimedGraph graph(queue_.stream(), launches, [] {}, [&](int) { launch(); });
    graph.replay(queue_.stream());
    std::vector<double> samples;
    for (int i = 0; i < replays; ++i) samples.push_back(graph.replay(queue_.stream()));
    return quantile(samples, 0.5);
  }

 private:
  // Values, or codes and scales in their place, as a linear on a GPU asks for them.
  LinearInput output(bool codes) const {
    LinearInput out;
    out.dtype = DataType::kFp16;
    if (!codes) {
      out.values = values_.tensor();
      return out;
    }
    out.codes = codes_.tensor();
    out.scales = scales_.tensor();
    out.group = fk::kGroupSize;
    out.act_bits = act_bits_;
    out.scale_stride = fg::scale_stride_of(m_);
    out.order = fg::CodeOrder::kFragment;
    return out;
  }

  cuda::Queue queue_;
  int64_t m_, k_;
  int act_bits_;
  int64_t groups_;
  Buffer x_, weight_, product_, values_, codes_, scales_;
};

}  // namespace

QuantizerTimes measure_quantizers(int64_t m, int64_t k, int act_bits, int launches, int replays) {
  QuantizerBench bench(m, k, act_bits);
  const auto time = [&](const std::function<void()>& launch) {
    return bench.measure(launch, launches, replays);
  };
  QuantizerTimes out;
  out.alone = time([&] { bench.alone(); });
  out.norm = time([&] { bench.norm(false); });
  out.norm_and_codes = time([&] { bench.norm(true); });
  out.activation = time([&] { bench.activation(false); });
  out.activation_and_codes = time([&] { bench.activation(true); });
  return out;
}

}  // namespace flexq_ft
