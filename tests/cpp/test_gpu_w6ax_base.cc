// The plain and the binary product on a GPU against their CPU twin, the others at sizes that are
// too large for it against plain, and what all refuse. --small: fewer and smaller problems, for
// compute-sanitizer.
#include <map>

#include "flexq_kernels/gpu/pack.h"
#include "flexq_kernels/gpu/quantize.h"
#include "flexq_kernels/quantize.h"
#include "tests/cpp/w6ax_check.h"

using namespace flexq_test;
namespace gpu = flexq_kernels::gpu;
using gpu::CodeOrder;

namespace {

constexpr CodeOrder kOrders[] = {CodeOrder::kNatural, CodeOrder::kFragment};
constexpr FloatType kTypes[] = {FloatType::kFp32, FloatType::kFp16, FloatType::kBf16};

void check_products(const WeightCase& w, int64_t m, int act_bits, Values values, uint64_t seed) {
  const InputCase x(m, w.k, act_bits, values, seed);
  const std::vector<int32_t> want = cpu_sums(w, x);
  OutputCase y(m, w.n, kTypes[seed % 3], seed % 2 == 0, seed % 5 < 2, seed);
  check_product(plain_implementation(), kOrders[seed % 2], w, x, y, want);
  check_product(btc_implementation(), kOrders[seed / 2 % 2], w, x, y, want);
}

}  // namespace

TEST(products_of_awkward_sizes) {
  if (nothing_to_test()) return;
  const std::vector<int64_t> tokens =
      small() ? std::vector<int64_t>{1, 3, 9, 17, 33, 65}
              : std::vector<int64_t>{1,  2,  3,  4,  5,  7,   8,   9,   15,  16,  17,
                                     31, 33, 63, 64, 65, 127, 129, 255, 257, 511, 513};
  const int64_t most = small() ? 1 << 16 : 3 << 22;
  uint64_t seed = 0;
  for (const int64_t n : {1, 15, 16, 40, 48, 128, 1024, 4096, 11008, 32000, 32016}) {
    for (const int64_t k : {1, 127, 128, 200, 256, 384, 1408, 11008, 17920, 28672}) {
      const int64_t padded =
          flexq_kernels::row_tiles(n) * kTileRows * flexq_kernels::group_count(k) * kGroupSize;
      if (padded > most) continue;
      const WeightCase w(n, k, Values::kRandom, static_cast<uint64_t>(n + k));
      for (const int64_t m : tokens) {
        if (m * padded > most) break;
        check_products(w, m, seed % 2 == 0 ? 8 : 6, Values::kRandom, seed);
        ++seed;
      }
    }
  }
}

TEST(products_of_extreme_values) {
  if (nothing_to_test()) return;
  uint64_t seed = 0;
  for (const Values values : {Values::kExtremes, Values::kLeast, Values::kSpecial}) {
    for (const int64_t k : {128, 200, 1152}) {
      const WeightCase w(72, k, values, seed);
      for (const int64_t m : {1, 8, 13, 40}) {
        for (const int act_bits : {6, 8}) check_products(w, m, act_bits, values, ++seed);
      }
    }
  }
}

TEST(a_row_does_not_depend_on_its_batch) {
  if (nothing_to_test()) return;
  const int64_t n = 80, k = 2944, m = small() ? 12 : 200;
  const WeightCase w(n, k, Values::kRandom, 1);
  const InputCase x(m, k, 8, Values::kRandom, 1);
  for (const Implementation& kernel : implementations()) {
    if (!kernel.why_not({m, n, k, 8}, gpu::current_device()).empty()) continue;
    const auto first_rows = [&](int64_t rows) {
      OutputCase part(rows, n, FloatType::kFp32, true, false, 1);  // the same bias
      InputCase of_part(rows, k, 8, Values::kRandom, 1);
      of_part.codes.assign(x.codes.begin(), x.codes.begin() + rows * x.groups * kGroupSize);
      for (int64_t i = 0; i < x.groups * rows; ++i) {
        of_part.scales[static_cast<size_t>(i / rows * of_part.stride + i % rows)] =
            x.scale(i % rows, i / rows);
      }
      of_part.upload();
      kernel.gemm(part.gpu(), of_part.gpu(kernel.order), w.gpu(), {rows, n, k, 8}, plain_launch());
      return part.values.fetch();
    };
    std::map<int, std::vector<uint8_t>> whole;  // by the parts of k: the largest batch so far
    for (const int64_t rows :
         std::initializer_list<int64_t>{m, 65, 64, 33, 17, 16, 9, 8, 7, 2, 1}) {
      if (rows > m) continue;
      const std::vector<uint8_t> part = first_rows(rows);
      const auto [at, first] = whole.try_emplace(kernel.parts({rows, n, k, 8}), part);
      if (first) continue;
      expect_same(part, std::vector<uint8_t>(at->second.begin(), at->second.begin() + rows * n * 4),
                  kernel.name + ", the first " + std::to_string(rows) + " rows");
    }
  }
}

TEST(large_products_are_those_of_the_plain_kernel) {
  if (nothing_to_test() || small()) return;
  const int64_t sizes[][3] = {
      {1, 4096, 28672}, {16, 32016, 384}, {65, 4096, 4096}, {513, 1024, 1408}};
  for (const auto& [m, n, k] : sizes) {
    const WeightCase w(n, k, Values::kRandom, 9);
    const InputCase x(m, k, 8, Values::kRandom, 9);
    const GemmProblem problem{m, n, k, 8};
    const DeviceArray<int32_t> sums(m * n * w.groups);
    gpu::plain_group_sums(sums.data(), x.gpu(CodeOrder::kNatural), w.gpu(), problem,
                          plain_launch());
    OutputCase y(m, n, FloatType::kBf16, true, true, 9);
    for (const Implementation& kernel : implementations()) {
      const GemmProblem problem{x.m, w.n, w.k, x.act_bits};
      if (!kernel.why_not(problem, gpu::current_device()).empty()) continue;
      check_product(kernel, kernel.order, w, x, y, sums.fetch());
    }
  }
}

TEST(planes_lie_where_the_layout_says) {
  if (nothing_to_test()) return;
  const int64_t n = 17, k = 200, m = 9, groups = 2;
  const WeightCase w(n, k, Values::kRandom, 4);
  const InputCase x(m, k, 8, Values::kRandom, 4);
  const DeviceArray<uint8_t> in_place(w.packed);
  auto* planes = reinterpret_cast<uint32_t*>(in_place.data());
  gpu::btc_pack_weight(planes, in_place.data(), n, k, plain_launch());
  const std::vector<uint8_t> bytes = in_place.fetch("planes");
  std::vector<uint32_t> words(bytes.size() / 4);
  std::memcpy(words.data(), bytes.data(), bytes.size());
  int wrong = 0;
  for (int64_t i = 0; i < 32 * groups * kGroupSize * gpu::kWeightPlanes; ++i) {
    const int p = static_cast<int>(i % 6);
    const int64_t at = i / 6, row = at / (groups * kGroupSize), column = at % (groups * kGroupSize);
    const int code = row < n && column < k ? w.codes[static_cast<size_t>(row * k + column)] : 0;
    const int64_t tile = row / kTileRows * groups + column / kGroupSize;
    const int word = gpu::btc_weight_word(static_cast<int>(row % kTileRows),
                                          static_cast<int>(column % kGroupSize), p);
    const uint32_t bit = words[static_cast<size_t>(tile * 384 + word)] >> (column % 32) & 1;
    wrong += bit != ((static_cast<uint32_t>(code + gpu::kWeightOffset) >> p) & 1);
  }
  EXPECT_EQ(wrong, 0);
  const DeviceArray<uint32_t> blocks(gpu::btc_activation_bytes(m, k, 8) / 4);
  gpu::btc_pack_activations(blocks.data(), x.gpu(CodeOrder::kFragment), m, k, 8, plain_launch());
  const std::vector<uint32_t> got = blocks.fetch("activation planes");
  for (int64_t i = 0; i < 16 * groups * kGroupSize * 8; ++i) {
    const int p = static_cast<int>(i % 8);
    const int64_t at = i / 8, token = at / (groups * kGroupSize),
                  column = at % (groups * kGroupSize);
    const int8_t code = token < m ? x.codes[static_cast<size_t>(at)] : int8_t{0};
    const int64_t block = token / 8 * groups + column / kGroupSize;
    const int word = gpu::btc_activation_word(static_cast<int>(token % 8),
                                              static_cast<int>(column % kGroupSize), p);
    const uint32_t bit =
        got[static_cast<size_t>(block * gpu::btc_block_words(8) + word)] >> (column % 32) & 1;
    wrong += bit != ((static_cast<uint32_t>(static_cast<uint8_t>(code)) >> p) & 1);
  }
  EXPECT_EQ(wrong, 0);
}

TEST(a_graph_of_dependent_launches_computes_the_same) {
  if (nothing_to_test()) return;
  const int64_t m = 5, n = 48, k = 1000;
  const WeightCase w(n, k, Values::kRandom, 6);
  Random random(6);
  std::vector<uint16_t> x(static_cast<size_t>(m * k));
  for (uint16_t& value : x) value = half_bits((2 * random.unit() - 1) * 3);
  const DeviceArray<uint16_t> gpu_x(x);
  const DeviceArray<int8_t> codes(m * w.groups * kGroupSize);
  const DeviceArray<float> scales(w.groups * gpu::scale_stride_of(m));
  const DeviceArray<uint32_t> planes(gpu::btc_activation_bytes(m, k, 8) / 4);
  const DeviceArray<uint32_t> weight(flexq_kernels::packed_bytes(n, k) / 4);
  gpu::btc_pack_weight(weight.data(), w.gpu().codes, n, k, plain_launch());
  const OutputCase y(m, n, FloatType::kFp16, true, false, 6);
  const gpu::ActivationBuffers out{codes.data(), scales.data(), gpu::scale_stride_of(m),
                                   CodeOrder::kFragment};
  const GemmProblem problem{m, n, k, 8};
  const auto chain = [&](const gpu::Launch& launch) {
    gpu::quantize_activations(out, gpu_x.data(), FloatType::kFp16, m, k, 8, launch);
    gpu::btc_pack_activations(planes.data(), out.view(), m, k, 8, launch);
    gpu::btc_gemm(y.gpu(), {planes.data(), scales.data(), out.scale_stride},
                  {weight.data(), w.gpu().scales}, problem, launch);
  };
  chain(plain_launch());
  const std::vector<uint8_t> want = y.values.fetch();
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  check_cuda(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < 10; ++i) chain(dependent_launch());
  check_cuda(cudaStreamEndCapture(stream(), &graph), "capture");
  check_cuda(cudaGraphInstantiate(&executable, graph, 0), "graph");
  for (int i = 0; i < 10; ++i) check_cuda(cudaGraphLaunch(executable, stream()), "graph");
  expect_same(y.values.fetch(), want, "100 chains in a graph");
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

TEST(what_is_refused) {
  if (nothing_to_test()) return;
  const WeightCase w(16, 128, Values::kRandom, 1);
  const InputCase x(2, 128, 8, Values::kRandom, 1);
  const OutputCase y(2, 16, FloatType::kFp32, false, false, 1);
  gpu::Activations activations = x.gpu(CodeOrder::kNatural);
  activations.scale_stride = 2;
  EXPECT_THROW(gpu::plain_gemm(y.gpu(), activations, w.gpu(), {2, 16, 128, 8}, plain_launch()),
               std::invalid_argument, "stride 2");
  EXPECT_THROW(gpu::plain_gemm(y.gpu(), x.gpu(CodeOrder::kNatural), w.gpu(), {2, 16, 128, 16},
                               plain_launch()),
               std::invalid_argument, "abits=16");
  EXPECT_THROW(
      gpu::plain_gemm({}, x.gpu(CodeOrder::kNatural), w.gpu(), {2, 16, 128, 8}, plain_launch()),
      std::invalid_argument, "output: a null pointer");
  EXPECT_THROW(
      gpu::pack_int6(w.gpu_packed->data(), x.gpu_natural->data() + 4, 16, 128, plain_launch()),
      std::invalid_argument, "16-byte boundary");
  EXPECT_THROW(
      gpu::quantize_activations({}, y.values.data(), FloatType::kFp32, 2, 128, 7, plain_launch()),
      std::invalid_argument, "act_bits");
  gpu::quantize_activations({}, nullptr, FloatType::kFp32, 0, 128, 8, plain_launch());
}

TEST(no_tokens_are_no_work_for_any_kernel) {
  if (nothing_to_test()) return;
  const GemmProblem none{0, 16, 128, 8};
  gpu::plain_gemm({}, {}, {}, none, plain_launch());
  gpu::plain_group_sums(nullptr, {}, {}, none, plain_launch());
  gpu::btc_gemm({}, {}, {}, none, plain_launch());
  gpu::btc_group_sums(nullptr, {}, {}, none, plain_launch());
  for (const gpu::Candidate& one : gpu::candidates({1, 16, 128, 8}, gpu::current_device())) {
    gpu::gemm_w6ax({}, {}, {}, none, one, nullptr, plain_launch());
    gpu::group_sums_w6ax(nullptr, {}, {}, none, one, plain_launch());
  }
}

TEST(all_kernels_refuse_floats_in_the_same_words) {
  if (nothing_to_test()) return;
  const GemmProblem floats{2, 16, 128, 16};
  for (const Implementation& kernel : implementations()) {
    const std::string why = kernel.why_not(floats, gpu::current_device());
    EXPECT_EQ(why, std::string("its activations have 6 or 8 bits, not 16"));
  }
  EXPECT_EQ(gpu::plain_why_not(floats, gpu::current_device()),
            std::string("its activations have 6 or 8 bits, not 16"));
}
