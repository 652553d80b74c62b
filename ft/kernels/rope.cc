#include "ft/kernels/rope.h"

#include <cmath>
#include <vector>

#include "ft/kernels/twins.h"

namespace flexq_ft {

namespace {

// Every step in fp32 and in the order of Hugging Face's modeling_rope_utils, so that frequencies
// agree to the last bit or one beside it: an angle is the frequency times up to 131072.
std::vector<float> inverse_frequencies(const RopeConfig& rope, int64_t head_dim) {
  const float base = static_cast<float>(rope.theta);
  std::vector<float> out(static_cast<size_t>(head_dim / 2));
  for (size_t j = 0; j < out.size(); ++j) {
    const float exponent = static_cast<float>(2 * j) / static_cast<float>(head_dim);
    out[j] = 1.0f / static_cast<float>(std::pow(static_cast<double>(base), exponent));
  }
  if (rope.type == RopeConfig::Type::kLinear) {
    for (float& f : out) f /= static_cast<float>(rope.factor);
  }
  return out;
}

// Llama 3: long waves are stretched by the factor, short ones kept, those between interpolated.
void scale_llama3(const RopeConfig& rope, std::vector<float>& frequencies) {
  const float factor = static_cast<float>(rope.factor);
  const float low = static_cast<float>(rope.low_freq_factor);
  const float span = static_cast<float>(rope.high_freq_factor - rope.low_freq_factor);
  const double original = static_cast<double>(rope.original_max_positions);
  const float longest = static_cast<float>(original / rope.low_freq_factor);
  const float shortest = static_cast<float>(original / rope.high_freq_factor);
  for (float& f : frequencies) {
    const float wave = static_cast<float>(2.0 * M_PI) / f;
    if (wave > longest) {
      f /= factor;
    } else if (!(wave < shortest)) {
      const float smooth = (static_cast<float>(original) / wave - low) / span;
      f = (1.0f - smooth) * f / factor + smooth * f;
    }
  }
}

}  // namespace

Buffer make_rope_table(const RopeConfig& rope, int64_t head_dim, int64_t positions) {
  FLEXQ_FT_CHECK_EQ(head_dim % 2, 0, "rope: head_dim ", head_dim);
  FLEXQ_FT_CHECK_LT(0, head_dim, "rope: head_dim");
  FLEXQ_FT_CHECK_LE(0, positions, "rope: positions");
  std::vector<float> frequencies = inverse_frequencies(rope, head_dim);
  if (rope.type == RopeConfig::Type::kLlama3) scale_llama3(rope, frequencies);
  Buffer table(DataType::kFp32, Shape{positions, head_dim}, MemoryKind::kWeights);
  float* row = static_cast<float*>(table.data());
  const int64_t half = head_dim / 2;
  for (int64_t p = 0; p < positions; ++p, row += head_dim) {
    for (int64_t j = 0; j < half; ++j) {
      const double angle = static_cast<float>(p) * frequencies[static_cast<size_t>(j)];
      row[j] = static_cast<float>(std::cos(angle));
      row[half + j] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

void invokeRopeAppend(Tensor q, KvPages kv, const Product& qkv, ConstTensor rope,
                      const RaggedBatch& batch, Stream stream) {
  check_ragged_batch(batch, kv);
  const int64_t kv_heads = kv.k.dim(1);
  const int64_t head_dim = kv.k.dim(3);
  FLEXQ_FT_CHECK_EQ(q.rank(), 2, "rope: q ", q.shape());
  FLEXQ_FT_CHECK_EQ(q.dim(0), batch.positions.dim(0), "rope: tokens of q");
  FLEXQ_FT_CHECK_EQ(q.dim(1) % head_dim, 0, "rope: columns of q ", q.shape());
  FLEXQ_FT_CHECK_EQ(q.dtype(), kv.k.dtype(), "rope: q and the cache");
  check_product(qkv, q.dim(0), q.dim(1) + 2 * kv_heads * head_dim);
  if (rope.defined()) {
    FLEXQ_FT_CHECK_EQ(rope.dtype(), DataType::kFp32, "rope: table");
    FLEXQ_FT_CHECK_EQ(rope.rank(), 2, "rope: table ", rope.shape());
    FLEXQ_FT_CHECK_EQ(rope.dim(1), head_dim, "rope: columns of the table");
  }
  if (q.empty()) return;
  if (q.device() == Device::kCuda) return gpu::rope_append(q, kv, qkv, rope, batch, stream);
  const int32_t* positions = batch.positions.data<int32_t>();
  for (int64_t t = 0; rope.defined() && t < batch.positions.count(); ++t) {
    FLEXQ_FT_CHECK_LT(positions[t], rope.dim(0), "rope: position of token ", t);
  }
  cpu::check_finished(qkv);
  FLEXQ_FT_CHECK(!qkv.bias.defined(), "rope: a bias on the CPU is the linear's");
  cpu::rope_append(q, kv, qkv.values, rope, batch);
}

}  // namespace flexq_ft
