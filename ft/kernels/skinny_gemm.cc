#include "ft/kernels/skinny_gemm.h"

#include <limits>
#include <string>

namespace flexq_ft::gpu {

namespace {

int token_tiles(int64_t m) { return m <= 8 ? 1 : m <= 16 ? 2 : m <= 32 ? 4 : 8; }

// Rows and stages that are compiled, by token tiles, as launch_skinny_all() lists them.
std::vector<SkinnyConfig> shapes(int tiles) {
  switch (tiles) {
    case 1:
      return {{16, 0, 4}, {32, 0, 4}, {16, 0, 2}, {32, 0, 2}};
    case 2:
      return {{16, 0, 4}, {32, 0, 4}, {64, 0, 2}, {32, 0, 2}};
    case 4:
      return {{32, 0, 2}, {64, 0, 2}};
    default:
      return {{32, 0, 2}, {64, 0, 1}};
  }
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const SkinnyConfig& c) {
  return out << "rows=" << c.rows << " warps=" << c.warps << " stages=" << c.stages
             << (c.ahead > 0 ? " ahead=" + std::to_string(c.ahead) : "");
}

bool skinny_gemm_takes(const GemmProblem& p) {
  const bool types = p.scheme == Scheme::kW8A8
                         ? p.dtype == DataType::kInt8
                         : (p.scheme == Scheme::kFloat || p.scheme == Scheme::kW8A16) &&
                               (p.dtype == DataType::kFp16 || p.dtype == DataType::kBf16);
  const int64_t multiple = is_w8(p.scheme) ? 16 : 8;
  // Pieces of 16 bytes are counted in 32 bits, over the whole weight too.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  return types && !p.rounded && p.m >= 1 && p.m <= kSkinnyMaxTokens && p.n >= 1 &&
         p.k >= multiple && p.k % multiple == 0 && p.n <= kMost && p.k / 8 <= kMost / p.n &&
         p.k / 8 <= kMost / kSkinnyMaxTokens;
}

std::vector<SkinnyConfig> skinny_configs(const GemmProblem& problem) {
  std::vector<SkinnyConfig> configs;
  if (!skinny_gemm_takes(problem)) return configs;
  const int tiles = token_tiles(problem.m);
  for (const int warps : {8, 4}) {
    for (SkinnyConfig config : shapes(tiles)) {
      config.warps = warps;
      configs.push_back(config);
    }
  }
  return configs;
}

SkinnyConfig skinny_default(const GemmProblem& problem, int multiprocessors) {
  FLEXQ_FT_CHECK(skinny_gemm_takes(problem), problem.scheme, " m ", problem.m, " n ", problem.n,
                 " k ", problem.k);
  const int64_t w_bytes = is_w8(problem.scheme) ? 1 : 2;
  const int64_t x_bytes = problem.scheme == Scheme::kW8A8 ? 1 : 2;
  const int tiles = token_tiles(problem.m);
  SkinnyConfig config;
  // A warp's pipeline of 4 chunks fills and drains once: over 16 chunks that costs little. Where
  // there are too few rows for many blocks, the bytes in flight must come from 8 warps of each.
  const int64_t chunks = problem.k * w_bytes / 64;
  const bool few_blocks = problem.n / 16 < 4 * multiprocessors;
  config.warps = chunks >= 8 * 16 || (chunks >= 8 * 8 && few_blocks) ? 8 : 4;
  // More rows of w share each value of x: until x costs less than half of what w does, as long as
  // (nearly) every multiprocessor has a block.
  const auto blocks = [&](int rows) { return (problem.n + rows - 1) / rows; };
  config.rows = tiles >= 4 ? 32 : 16;
  const int most = tiles >= 4 ? 64 : 32;
  while (config.rows < most && problem.m * x_bytes * 2 >= config.rows * w_bytes &&
         blocks(2 * config.rows) >= multiprocessors * 9 / 10) {
    config.rows *= 2;
  }
  // One block for a multiprocessor needs all bytes in flight; two or more need room for each other.
  const bool alone = config.rows > 16 && blocks(config.rows) <= multiprocessors;
  config.stages = 0;
  for (const SkinnyConfig& shape : shapes(tiles)) {
    if (shape.rows != config.rows) continue;
    const bool better =
        config.rows == 16 || alone ? shape.stages > config.stages : shape.stages < config.stages;
    if (config.stages == 0 || better) config.stages = shape.stages;
  }
  return config;
}

namespace {

SkinnyMath math_of(Scheme scheme, DataType dtype) {
  if (scheme == Scheme::kW8A8) return SkinnyMath::kInt8;
  if (scheme == Scheme::kW8A16) {
    return dtype == DataType::kFp16 ? SkinnyMath::kW8Fp16 : SkinnyMath::kW8Bf16;
  }
  return dtype == DataType::kFp16 ? SkinnyMath::kFp16 : SkinnyMath::kBf16;
}

bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

}  // namespace

void invokeSkinnyGemm(Tensor y, ConstTensor x, ConstTensor w, Scheme scheme,
                      const SkinnyConfig& config, Stream stream) {
  FLEXQ_FT_CHECK(y.rank() == 2 && x.rank() == 2 && w.rank() == 2, "y ", y.shape(), " x ", x.shape(),
                 " w ", w.shape());
  const GemmProblem problem{scheme, x.dtype(), x.dim(0), w.dim(0), x.dim(1)};
  FLEXQ_FT_CHECK(skinny_gemm_takes(problem), "scheme ", scheme, " x ", x.dtype(), " ", x.shape(),
                 " w ", w.shape());
  FLEXQ_FT_CHECK_EQ(w.dim(1), problem.k, "k of w and x");
  FLEXQ_FT_CHECK_EQ(y.shape(), (Shape{problem.m, problem.n}), "y");
  FLEXQ_FT_CHECK_EQ(w.dtype(), is_w8(scheme) ? DataType::kInt8 : x.dtype(), "w");
  FLEXQ_FT_CHECK_EQ(y.dtype(), scheme == Scheme::kW8A8 ? DataType::kInt32 : DataType::kFp32, "y");
  FLEXQ_FT_CHECK(
      y.device() == Device::kCuda && x.device() == Device::kCuda && w.device() == Device::kCuda,
      "y ", y.device(), " x ", x.device(), " w ", w.device());
  FLEXQ_FT_CHECK(aligned(x.raw()) && aligned(w.raw()), "x ", x.raw(), " w ", w.raw());

  SkinnyArgs args;
  args.y = y.raw();
  args.x = x.raw();
  args.w = w.raw();
  args.m = static_cast<int>(problem.m);
  args.n = static_cast<int>(problem.n);
  args.pieces = static_cast<int>(problem.k * static_cast<int64_t>(size_of(w.dtype())) / 16);
  args.ahead = config.ahead;
  const SkinnyMath math = math_of(scheme, x.dtype());
  bool known = config.warps == 4 || config.warps == 8;
  if (known && scheme == Scheme::kFloat) {
    known = launch_skinny_float(math, args, config, stream);
  } else if (known && scheme == Scheme::kW8A16) {
    known = launch_skinny_w8a16(math, args, config, stream);
  } else if (known) {
    known = launch_skinny_int8(args, config, stream);
  }
  FLEXQ_FT_CHECK(known, "no kernel with ", config, " for m ", problem.m);
}

}  // namespace flexq_ft::gpu
