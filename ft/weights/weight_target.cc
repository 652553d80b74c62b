#include "ft/weights/weight_target.h"

#include "flexq_kernels/pack.h"
#include "ft/core/check.h"
#include "ft/kernels/gemm.h"
#include "ft/weights/device_target.h"
#include "ft/weights/host_target.h"

namespace flexq_ft {

namespace {

DataFormat format_of(Scheme scheme, DataType dtype, int act_bits, Layout layout) {
  DataFormat format;
  format.scheme = scheme;
  format.layout = layout;
  format.act_bits = act_bits;
  switch (scheme) {
    case Scheme::kFloat:
      format.storage = dtype;
      break;
    case Scheme::kW8A16:
    case Scheme::kW8A8:
      format.storage = DataType::kInt8;
      break;
    case Scheme::kW6Ax:
      format.storage = DataType::kUint8;
      format.scale = DataType::kFp16;
      format.group_size = flexq_kernels::kGroupSize;
      break;
  }
  return format;
}

Shape scale_shape(Layout layout, int64_t n, int64_t k) {
  if (layout == Layout::kFrag16x128) return {flexq_kernels::group_count(k), n};
  if (layout == Layout::kFrag16x128Tiled) return {flexq_kernels::tiled_scale_count(n, k)};
  return {n};
}

void check_depth(const LinearWeight& weight) {
  if (weight.format.scheme != Scheme::kW8A8 || weight.k <= kMaxW8A8Depth) return;
  throw Error(ErrorKind::kConfig,
              detail::join(weight.name, " has ", weight.k, " inputs a rank, and w8a8 takes ",
                           kMaxW8A8Depth, " at the most"),
              "their int32 sum could overflow", "use --scheme w8a16, or more ranks");
}

}  // namespace

Buffer WeightTarget::values(DataType dtype, Shape shape) {
  return Buffer(dtype, shape, MemoryKind::kWeights, device());
}

std::unique_ptr<WeightTarget> make_weight_target(Device device, size_t region_bytes) {
  if (device == Device::kCuda) return std::make_unique<DeviceTarget>(region_bytes);
  return std::make_unique<HostTarget>();
}

LinearWeight new_linear(const std::string& name, Scheme scheme, DataType dtype, int act_bits,
                        int64_t n, int64_t k, size_t parts, WeightTarget& target) {
  LinearWeight out;
  out.name = name;
  out.format = format_of(scheme, dtype, act_bits, target.layout(scheme));
  out.n = n;
  out.k = k;
  if (parts == 2) out.rows = target.paired(n / 2);
  check_depth(out);
  out.codes = target.codes(out);
  if (scheme != Scheme::kFloat) {
    out.scales = target.values(out.format.scale, scale_shape(out.format.layout, n, k));
  }
  return out;
}

}  // namespace flexq_ft
