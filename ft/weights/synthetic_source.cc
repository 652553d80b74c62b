#include "ft/weights/synthetic_source.h"

#include <cmath>

#include "flexq_kernels/pack.h"
#include "ft/core/check.h"
#include "ft/weights/folder_ini.h"

namespace flexq_ft {

using detail::join;

namespace {

constexpr float kSqrt3 = 1.7320508f;  // a uniform number's largest, over its deviation
constexpr float kNormSpread = 0.05f;
constexpr float kBiasSpread = 0.01f;

// FNV-1a: the key of a weight's numbers.
uint64_t key_of(const std::string& name) {
  uint64_t hash = 1469598103934665603u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return hash;
}

}  // namespace

SyntheticSource::SyntheticSource(const ModelFolder& folder, const LoadOptions& options,
                                 WeightTarget& target)
    : folder_(folder), options_(options), target_(target) {}

Buffer SyntheticSource::values(const std::string& name, Shape shape, DataType dtype, float center,
                               float spread, RowOrder order) {
  Buffer out = target_.values(dtype, shape);
  target_.random(out, {key_of(name), center, spread}, order);
  return out;
}

LinearWeight SyntheticSource::linear(const std::string& name, const std::vector<LinearPart>& parts,
                                     const LinearForm& form) {
  int64_t n = 0;
  for (const LinearPart& part : parts) n += part.n;
  LinearWeight out = new_linear(name, form.scheme, options_.dtype, form.act_bits, n, parts[0].k,
                                parts.size(), target_);
  const std::string own = join(name, ".rank", options_.rank);
  // A row-parallel output is the sum of all ranks' shares.
  const int64_t inputs = parts[0].row_parallel ? out.k * folder_.tp : out.k;
  const float spread = kSqrt3 / std::sqrt(static_cast<float>(inputs));
  if (form.scheme == Scheme::kW6Ax) {
    fill_int6(out, own, spread);
  } else {
    target_.random(out, {key_of(own), 0.0f, spread});
  }
  if (is_w8(form.scheme)) {
    const float scale = spread / 127.0f;
    target_.random(out.scales, {key_of(own + ".scale"), scale, scale / 8.0f}, out.rows);
  }
  if (parts[0].has_bias && !parts[0].row_parallel) {
    out.bias = values(own + ".bias", {n}, DataType::kFp32, 0.0f, kBiasSpread, out.rows);
  }
  return out;
}

// Bits of a packed weight are free: whatever they are, its codes are uniform in -32 … 31.
void SyntheticSource::fill_int6(const LinearWeight& weight, const std::string& own, float spread) {
  target_.random(weight, {key_of(own), 0.0f, 0.0f});
  const Shape shape{flexq_kernels::group_count(weight.k), weight.n};
  const size_t bytes = static_cast<size_t>(shape.count()) * size_of(weight.format.scale);
  const Tensor scales(target_.stage(bytes), weight.format.scale, shape);
  const float scale = spread / 32.0f;
  invokeRandomFill(scales, {key_of(own + ".scale"), scale, scale / 8.0f}, 0, {});
  target_.put_scales(weight, scales);
}

LinearWeight SyntheticSource::head(const std::string&, int64_t begin, int64_t end) {
  const int64_t k = folder_.config.hidden_size;
  LinearWeight out =
      new_linear("lm_head", Scheme::kFloat, options_.dtype, 16, end - begin, k, 1, target_);
  target_.random(out, {key_of(join("lm_head.rank", options_.rank)), 0.0f,
                       kSqrt3 / std::sqrt(static_cast<float>(k))});
  return out;
}

// The same on every rank, which hold the same.
Buffer SyntheticSource::floats(const std::string& file, Shape shape, DataType dtype,
                               FloatRole role) {
  switch (role) {
    case FloatRole::kTable:
      return values(file, shape, dtype, 0.0f, kSqrt3);
    case FloatRole::kNorm:
      return values(file, shape, dtype, 1.0f, kNormSpread);
    case FloatRole::kBias:
      break;
  }
  return values(file, shape, dtype, 0.0f, kBiasSpread);
}

ModelFolder shape_folder(const std::string& ini_path, Scheme scheme, DataType dtype, int tp) {
  ModelFolder folder = read_folder_ini(IniFile::read(ini_path, ErrorKind::kConfig));
  folder.path = ini_path;
  folder.scheme = scheme;
  folder.dtype = dtype;
  folder.tp = tp;
  folder.config.validate();
  folder.shards = even_shards(folder.config, tp);
  return folder;
}

}  // namespace flexq_ft
