#include "ft/step/step_kernel.h"

#include <algorithm>
#include <cmath>

#include "flexq_kernels/pack.h"
#include "ft/core/check.h"
#include "ft/core/error.h"
#include "ft/step/row_map.h"
#include "ft/step/shared_map.h"
#include "ft/step/step_launch.h"
#include "ft/step/work_plan.h"

namespace flexq_ft {

namespace {

using step::Format;
using step::Op;
using step::OpKind;

Format format_of(Scheme scheme) {
  switch (scheme) {
    case Scheme::kW8A16:
      return Format::kW8A16;
    case Scheme::kW8A8:
      return Format::kW8A8;
    case Scheme::kW6Ax:
      return Format::kW6;
    default:
      return Format::kFloat;
  }
}

// How many bytes of packets each exchange buffer has, one after the other.
struct Exchange {
  int64_t stream, qkv, attended, raised, parts;

  Exchange(const ModelConfig& c, int64_t tokens, int64_t max_parts)
      : stream(tokens * c.hidden_size / 2),
        qkv(tokens * (c.num_heads + 2 * c.num_kv_heads) * c.head_dim / 2),
        attended(tokens * c.num_heads * c.head_dim / 2),
        raised(tokens * c.inter_size / 2),
        parts(tokens * c.num_heads * max_parts * (c.head_dim + 2)) {
    for (int64_t* packets : {&stream, &qkv, &attended, &raised, &parts}) {
      *packets = (*packets + 15) / 16 * 16;  // every buffer begins a line
    }
  }
  int64_t packets() const { return 2 * stream + qkv + attended + raised + parts; }
};

const step::StepLaunch& launch_of(Format format) {
  const step::StepLaunch* const launches[] = {&step::kFloatStep, &step::kW8A16Step,
                                              &step::kW8A8Step, &step::kW6Step};
  return *launches[static_cast<size_t>(format)];
}

const void* row_scales(const LinearWeight& w) {
  return w.scales.defined() ? w.scales.data() : nullptr;
}

template <typename T>
const T* data_or_null(const Buffer& buffer) {
  return buffer.defined() ? static_cast<const T*>(buffer.data()) : nullptr;
}

Op product(const LinearWeight& w, const float* bias) {
  Op op;
  op.codes = w.codes.data();
  op.scales = row_scales(w);
  op.bias = bias;
  op.n = static_cast<int32_t>(w.n);
  op.k = static_cast<int32_t>(w.k);
  op.limit = w.format.act_bits == 6 ? 31 : 127;
  return op;
}

Op normed(Op op, const NormWeight& norm) {
  op.norm_weight = norm.weight.data();
  op.norm_bias = data_or_null<void>(norm.bias);
  return op;
}

template <typename T>
Buffer uploaded(const std::vector<T>& values, Stream stream) {
  Buffer out(values.size() * sizeof(T), MemoryKind::kWorkspace, Device::kCuda);
  cuda::copy(out.data(), values.data(), out.bytes(), stream);
  return out;
}

const char* name_of(int kind) {
  constexpr const char* kNames[] = {"qkv", "attention", "o", "up", "down", "lm_head"};
  return kNames[kind];
}

}  // namespace

StepFlow StepFlow::of(const cuda::DeviceInfo& device) {
  // About 2 us of a multiprocessor's share of the memory rate must be on their way.
  constexpr double kSeconds = 1.97e-6;
  const double bytes = device.memory_bytes_per_second * kSeconds / device.multiprocessors;
  StepFlow flow;
  flow.in_flight = step::odd(static_cast<int>(std::lround(bytes / step::kStageBytes)) + 1);
  flow.in_flight_filled = step::odd((flow.in_flight + 1) / 2);
  return flow;
}

StepKernel::StepKernel(const StepModel& model, const cuda::DeviceInfo& device, Stream stream)
    : model_(model),
      device_(device),
      format_(format_of(model.weights.layers.front().qkv.format.scheme)),
      max_parts_(std::max(1, device.multiprocessors / static_cast<int>(model.config.num_kv_heads))),
      flow_(StepFlow::of(device)) {
  for (int tokens = 1; tokens <= step::kMaxTokens; ++tokens) {
    if (ring_stages(tokens) == 0) break;
    most_tokens_ = tokens;
  }
  pairs_ = most_tokens_ > 1 &&
           launch_of(format_).takes_pairs(model.dtype, static_cast<int>(device.shared_bytes),
                                          device.multiprocessors);
  const ModelConfig& config = model.config;
  std::vector<step::PlannedOp> planned;
  const auto plan = [&](const LinearWeight& w, int64_t units) {
    planned.push_back({units, static_cast<int64_t>(w.bytes()) / std::max<int64_t>(units, 1)});
  };
  const auto tiles = [](int64_t rows) { return (rows + step::kStageRows - 1) / step::kStageRows; };
  for (const LayerWeights& layer : model.weights.layers) {
    plan(layer.qkv, tiles(layer.qkv.n));
    planned.push_back({});
    plan(layer.o, tiles(layer.o.n));
    FLEXQ_FT_CHECK_EQ(2 * layer.up.rows.paired, config.gated_ffn ? layer.up.n : 0, layer.up.name);
    plan(layer.up, tiles(layer.up.n));
    plan(layer.down, tiles(layer.down.n));
  }
  plan(model.weights.lm_head, tiles(model.weights.lm_head.n));
  plan_ = uploaded(step::plan_work(planned, device.multiprocessors), stream);
  ops_ = uploaded(ops(stream), stream);
  const Exchange exchange(config, std::max<int64_t>(most_tokens_, 1), max_parts_);
  exchange_ =
      Buffer(DataType::kUint8, {exchange.packets() * 8}, MemoryKind::kWorkspace, Device::kCuda);
  counters_ = Buffer(step::kCounters * step::kCounterWords * sizeof(uint32_t),
                     MemoryKind::kWorkspace, Device::kCuda);
  cuda::fill(exchange_.data(), 0, exchange_.bytes(), stream);
  cuda::fill(counters_.data(), 0, counters_.bytes(), stream);
  // The first step is number 1: no packet of zeros is ever of its epochs.
  const uint32_t one = 1;
  cuda::copy(static_cast<uint32_t*>(counters_.data()) + step::kStep * step::kCounterWords, &one,
             sizeof one, stream);
  cuda::synchronize(stream);
  fault_ = static_cast<step::FaultWord*>(cuda::allocate_pinned(sizeof(step::FaultWord)));
  *fault_ = {};
}

StepKernel::~StepKernel() { cuda::release_pinned(fault_); }

int StepKernel::ring_stages(int64_t tokens) const {
  return step::make_shared_map(shared_sizes(static_cast<int>(tokens))).stages;
}

StepFlow StepKernel::flow(int64_t tokens) const {
  const int stages = ring_stages(tokens);
  const step::InFlight in_flight =
      step::in_flight_of({flow_.in_flight, flow_.in_flight_filled}, stages);
  return {in_flight.most, in_flight.filled, std::min(flow_.filled, stages - 1)};
}

step::SharedSizes StepKernel::shared_sizes(int tokens) const {
  const ModelConfig& config = model_.config;
  step::SharedSizes sizes;
  sizes.tokens = tokens;
  sizes.hidden = static_cast<int>(config.hidden_size);
  for (const LayerWeights& layer : model_.weights.layers) {
    for (const LinearWeight* w : {&layer.qkv, &layer.o, &layer.up, &layer.down}) {
      sizes.widest_k = std::max(sizes.widest_k, static_cast<int>(w->k));
    }
  }
  const bool codes = format_ == Format::kW8A8 || format_ == Format::kW6;
  sizes.operand_bytes = codes ? 1 : 2;
  // Behind a norm; of a scale for the whole row, all rows.
  sizes.raw_k = format_ == Format::kW8A8 ? sizes.widest_k
                : format_ == Format::kW6 ? sizes.hidden
                                         : 0;
  // Two tokens' 16-byte loads, of four lanes that are 16 bytes apart, or 32 (six-bit fragments, and
  // 16-bit values against int8 weights).
  sizes.spread = format_ == Format::kFloat || format_ == Format::kW8A8 ? 64 : 16;
  sizes.ops = static_cast<int>(config.num_layers) * step::kLayerOps + 1;
  const int sharing = static_cast<int>(config.num_heads / config.num_kv_heads);
  const auto head_dim = static_cast<int>(config.head_dim);
  const int length = step::part_length(static_cast<int>(model_.max_len), max_parts_, head_dim);
  sizes.unit = step::make_unit_map(head_dim, sharing, length);
  const int most = tokens * static_cast<int>(config.num_kv_heads) * max_parts_;
  sizes.attention_units = (most + device_.multiprocessors - 1) / device_.multiprocessors;
  sizes.block_bytes = static_cast<int>(device_.shared_bytes);
  return sizes;
}

std::vector<Op> StepKernel::ops(Stream stream) {
  std::vector<Op> out;
  for (size_t i = 0; i < model_.weights.layers.size(); ++i) {
    const LayerWeights& layer = model_.weights.layers[i];
    const KvPages& kv = model_.cache[i];
    out.push_back(
        normed(product(layer.qkv, data_or_null<float>(layer.qkv.bias)), layer.input_norm));
    Op attention;
    attention.k_pages = kv.k.raw();
    attention.v_pages = kv.v.raw();
    out.push_back(attention);
    out.push_back(product(layer.o, data_or_null<float>(layer.o_bias)));
    out.push_back(normed(product(layer.up, data_or_null<float>(layer.up.bias)), layer.post_norm));
    out.push_back(product(layer.down, data_or_null<float>(layer.down_bias)));
  }
  out.push_back(normed(product(model_.weights.lm_head, nullptr), model_.weights.final_norm));
  // Where the copy engine reads them.
  std::vector<step::RowMap> maps(step::kOpMaps * out.size());
  maps_ = Buffer(maps.size() * sizeof(step::RowMap), MemoryKind::kWorkspace, Device::kCuda);
  for (size_t i = 0; i < out.size(); ++i) {
    step::RowMap* const of_op = &maps[step::kOpMaps * i];
    if (i % step::kLayerOps == OpKind::kAttention) {
      const KvPages& kv = model_.cache[i / step::kLayerOps];
      step::make_page_map(&of_op[0], kv.k);
      step::make_page_map(&of_op[1], kv.v);
      continue;
    }
    const bool head = i + 1 == out.size();
    if (format_ == Format::kW6 && !head) continue;
    const int64_t row_bytes = out[i].k * (format_ == Format::kFloat || head ? 2 : 1);
    out[i].boxes = step::make_row_map(&of_op[0], out[i].codes, out[i].n, row_bytes);
  }
  cuda::copy(maps_.data(), maps.data(), maps_.bytes(), stream);
  cuda::synchronize(stream);
  return out;
}

void StepKernel::run(Tensor logits, const RaggedBatch& batch, Stream stream) {
  const ModelConfig& config = model_.config;
  const int64_t tokens = batch.sequences();
  FLEXQ_FT_CHECK_EQ(batch.tokens(), tokens, "tokens of a step of single tokens");
  FLEXQ_FT_CHECK_LE(1, tokens, "sequences of a step");
  FLEXQ_FT_CHECK_LE(tokens, most_tokens_, "sequences of a step");
  FLEXQ_FT_CHECK_EQ(logits.shape(), (Shape{tokens, config.vocab_size}), "logits of a step");
  step::Args args{};
  args.ops = static_cast<const Op*>(ops_.data());
  args.plan = static_cast<const uint32_t*>(plan_.data());
  args.maps = static_cast<const step::RowMap*>(maps_.data());
  args.layers = static_cast<int>(config.num_layers);
  args.tokens = static_cast<int>(tokens);
  args.hidden = static_cast<int>(config.hidden_size);
  args.heads = static_cast<int>(config.num_heads);
  args.kv_heads = static_cast<int>(config.num_kv_heads);
  args.head_dim = static_cast<int>(config.head_dim);
  args.inter = static_cast<int>(config.inter_size);
  args.vocab = static_cast<int>(config.vocab_size);
  args.gated = config.gated_ffn;
  args.layer_norm = config.norm == NormType::kLayer;
  args.activation = static_cast<int>(config.activation);
  args.eps = static_cast<float>(config.norm_eps);
  args.ids = static_cast<const int32_t*>(batch.ids.raw());
  args.positions = static_cast<const int32_t*>(batch.positions.raw());
  args.pages = static_cast<const int32_t*>(batch.pages.raw());
  args.max_pages = static_cast<int>(batch.pages.dim(1));
  args.embedding = model_.weights.embedding.data();
  if (model_.weights.positional.defined()) {
    args.positional = model_.weights.positional.data();
    args.positional_rows = static_cast<int>(config.max_positions);
  }
  if (model_.rope.defined()) {
    args.rope = static_cast<const float*>(model_.rope.raw());
    args.rope_rows = static_cast<int>(model_.rope.dim(0));
  }
  const Exchange sizes(config, most_tokens_, max_parts_);
  auto* packets = static_cast<step::Packet*>(exchange_.data());
  const auto take = [&](int64_t count) {
    step::Packet* const begin = packets;
    packets += count;
    return begin;
  };
  args.stream_in = take(sizes.stream);
  args.stream_mid = take(sizes.stream);
  args.qkv = take(sizes.qkv);
  args.attended = take(sizes.attended);
  args.raised = take(sizes.raised);
  args.parts = take(sizes.parts);
  args.max_parts = max_parts_;
  args.counters = static_cast<uint32_t*>(counters_.data());
  args.logits = static_cast<float*>(logits.raw());
  args.map = step::make_shared_map(shared_sizes(args.tokens));
  const StepFlow flow = this->flow(tokens);
  args.in_flight = flow.in_flight;
  args.in_flight_filled = flow.in_flight_filled;
  args.filled = flow.filled;
  args.paired = pairs_;
  args.patience_ns = static_cast<unsigned long long>(patience_ms_ * 1e6);
  args.fault = fault_;
  args.trace = trace_;
  args.disturbance = disturbance_;
  launch_of(format_).launch(model_.dtype, args, device_.multiprocessors, stream);
}

void StepKernel::throw_fault() const {
  const volatile step::FaultWord& fault = *fault_;
  if (fault.set == 0) return;
  const int last = static_cast<int>(model_.config.num_layers) * step::kLayerOps;
  const int op = fault.op;
  const std::string where =
      op == last ? std::string("lm_head")
                 : detail::join(name_of(op % step::kLayerOps), " of layer ", op / step::kLayerOps);
  throw Error(ErrorKind::kDevice,
              detail::join("the step kernel waited more than ", patience_ms_, " ms in ", where,
                           ", thread block ", int{fault.block}, ", for ",
                           fault.ring != 0 ? "its own weights" : "the results of other blocks"),
              "", "run again without it: --step-kernel off");
}

}  // namespace flexq_ft
