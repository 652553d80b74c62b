// Weights on a GPU against the same ones on the CPU, bit for bit.
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "flexq_kernels/pack.h"
#include "ft/core/cuda.h"
#include "ft/weights/device_target.h"
#include "ft/weights/file_source.h"
#include "ft/weights/model_weights.h"
#include "tests/cpp/check.h"
#include "tests/cpp/folder_fixture.h"

using namespace flexq_test;

namespace {

bool has_gpu() {
  if (cuda::device_count() > 0) return true;
  std::printf("no GPU: %s\n", cuda::no_device_cause().c_str());
  return false;
}

std::vector<uint8_t> read(const Buffer& buffer) {
  std::vector<uint8_t> out(buffer.bytes());
  if (buffer.device() == Device::kCpu) {
    if (!out.empty()) std::memcpy(out.data(), buffer.data(), out.size());
    return out;
  }
  cuda::copy(out.data(), buffer.data(), out.size(), {});
  cuda::synchronize({});
  return out;
}

// values of so many rows, as they are given, to where they lie. [n] of bytes each.
void arrange(std::vector<uint8_t>& values, int64_t n, RowOrder order) {
  if (values.empty() || order.paired == 0) return;
  const size_t bytes = values.size() / static_cast<size_t>(n);
  const std::vector<uint8_t> given = values;
  for (int64_t row = 0; row < n; ++row) {
    std::memcpy(&values[static_cast<size_t>(order.place(row)) * bytes],
                &given[static_cast<size_t>(row) * bytes], bytes);
  }
}

// The codes of six-bit tiles, [n, k]: without what pads them, which in random ones is random.
std::vector<uint8_t> unpacked(const LinearWeight& w) {
  std::vector<uint8_t> codes(static_cast<size_t>(w.n * w.k));
  flexq_kernels::unpack_int6(reinterpret_cast<int8_t*>(codes.data()), read(w.codes).data(), w.n,
                             w.k);
  return codes;
}

// The codes of a weight of the CPU, not of six bits, as a GPU has them, in this order.
std::vector<uint8_t> rows_of(const LinearWeight& w, RowOrder order) {
  const std::vector<uint8_t> codes = read(w.codes);
  const size_t size = size_of(w.format.storage);
  std::vector<uint8_t> out(static_cast<size_t>(w.n * w.k) * size);
  const int64_t pairs = (w.k + 1) / 2;
  for (int64_t row = 0; row < w.n; ++row) {
    for (int64_t k = 0; k < w.k; ++k) {
      const int64_t from = w.format.layout == Layout::kPanel
                               ? (row / 16 * w.k + k) * 16 + row % 16
                               : ((row / 16 * pairs + k / 2) * 16 + row % 16) * 2 + k % 2;
      std::memcpy(&out[static_cast<size_t>(row * w.k + k) * size],
                  &codes[static_cast<size_t>(from) * size], size);
    }
  }
  arrange(out, w.n, order);
  return out;
}

std::vector<uint8_t> scales_of(const LinearWeight& w, RowOrder order) {
  std::vector<uint8_t> scales = read(w.scales);
  if (w.format.layout != Layout::kFrag16x128) {
    arrange(scales, w.n, order);
    return scales;
  }
  std::vector<uint16_t> given(scales.size() / sizeof(uint16_t));
  std::memcpy(given.data(), scales.data(), scales.size());
  const int64_t groups = flexq_kernels::group_count(w.k);
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t row = 0; row < w.n; ++row) {
      std::memcpy(&scales[static_cast<size_t>(g * w.n + order.place(row)) * sizeof(uint16_t)],
                  &given[static_cast<size_t>(g * w.n + row)], sizeof(uint16_t));
    }
  }
  std::memcpy(given.data(), scales.data(), scales.size());
  std::vector<uint16_t> tiled(static_cast<size_t>(flexq_kernels::tiled_scale_count(w.n, w.k)));
  flexq_kernels::tile_scales(tiled.data(), given.data(), w.n, w.k);
  std::vector<uint8_t> out(tiled.size() * sizeof(uint16_t));
  std::memcpy(out.data(), tiled.data(), out.size());
  return out;
}

void same(const LinearWeight& gpu, const LinearWeight& cpu) {
  const bool int6 = cpu.format.layout == Layout::kFrag16x128;
  EXPECT(gpu.codes.device() == Device::kCuda);
  EXPECT(gpu.format.layout == (int6 ? Layout::kFrag16x128Tiled : Layout::kRowMajor));
  EXPECT_EQ(gpu.name, cpu.name);
  EXPECT_EQ(gpu.n, cpu.n);
  EXPECT_EQ(cpu.rows.paired, 0);
  const bool gated = cpu.name.find("gate_up") != std::string::npos;
  EXPECT_EQ(gpu.rows.paired, gated && cpu.n % 16 == 0 ? cpu.n / 2 : 0);
  if (int6) {
    std::vector<uint8_t> codes = unpacked(cpu);
    arrange(codes, cpu.n, gpu.rows);
    EXPECT(unpacked(gpu) == codes);
    EXPECT(gpu.rows.paired != 0 || read(gpu.codes) == read(cpu.codes));
  } else {
    EXPECT(read(gpu.codes) == rows_of(cpu, gpu.rows));
  }
  EXPECT(read(gpu.scales) == scales_of(cpu, gpu.rows));
  std::vector<uint8_t> bias = read(cpu.bias);
  arrange(bias, cpu.n, gpu.rows);
  EXPECT(read(gpu.bias) == bias);
}

void same(const Buffer& gpu, const Buffer& cpu) {
  EXPECT(!gpu.defined() || gpu.device() == Device::kCuda);
  EXPECT(read(gpu) == read(cpu));
}

void same(const NormWeight& gpu, const NormWeight& cpu) {
  same(gpu.weight, cpu.weight);
  same(gpu.bias, cpu.bias);
}

void same(const ModelWeights& gpu, const ModelWeights& cpu) {
  same(gpu.embedding, cpu.embedding);
  same(gpu.positional, cpu.positional);
  for (size_t i = 0; i < cpu.layers.size(); ++i) {
    const LayerWeights& a = gpu.layers[i];
    const LayerWeights& b = cpu.layers[i];
    same(a.input_norm, b.input_norm);
    same(a.qkv, b.qkv);
    same(a.o, b.o);
    same(a.o_bias, b.o_bias);
    same(a.post_norm, b.post_norm);
    same(a.up, b.up);
    same(a.down, b.down);
    same(a.down_bias, b.down_bias);
  }
  same(gpu.final_norm, cpu.final_norm);
  same(gpu.lm_head, cpu.lm_head);
}

void compare(const ModelFolder& folder, LoadOptions options) {
  for (options.rank = 0; options.rank < folder.tp; ++options.rank) {
    options.device = Device::kCuda;
    const ModelWeights gpu = load_weights(folder, options);
    options.device = Device::kCpu;
    same(gpu, load_weights(folder, options));
  }
}

}  // namespace

TEST(a_gpu_holds_the_values_of_the_cpu) {
  if (!has_gpu()) return;
  for (const ModelConfig& config : {small_llama(), small_opt()}) {
    for (const DataType from : {DataType::kFp32, DataType::kFp16, DataType::kBf16}) {
      const TempFolder temp;
      ModelFolder folder = make_folder(temp.path(), config, Scheme::kFloat, from, 2);
      write_weight_files(&folder);
      for (const DataType to : {DataType::kFp16, DataType::kBf16}) {
        for (const Scheme scheme : {Scheme::kFloat, Scheme::kW8A16, Scheme::kW8A8}) {
          LoadOptions options;
          options.dtype = to;
          options.scheme = scheme;
          compare(folder, options);
        }
      }
    }
  }
}

TEST(a_gpu_takes_int8_files) {
  if (!has_gpu()) return;
  for (const Scheme scheme : {Scheme::kW8A16, Scheme::kW8A8}) {
    const TempFolder temp;
    ModelFolder folder = make_folder(temp.path(), small_llama(), scheme, DataType::kFp16, 2);
    write_weight_files(&folder);
    LoadOptions options;
    options.scheme = scheme;
    compare(folder, options);
  }
}

TEST(a_gpu_takes_int6_files) {
  if (!has_gpu()) return;
  for (const int64_t inter : {40, 256}) {  // gate and up meet inside a tile, and between two
    ModelConfig config = small_llama();
    config.inter_size = inter;
    for (const int tp : {1, 2}) {
      const TempFolder temp;
      ModelFolder folder = make_folder(temp.path(), config, Scheme::kW6Ax, DataType::kFp16, tp);
      write_weight_files(&folder);
      LoadOptions options;
      options.scheme = Scheme::kW6Ax;
      compare(folder, options);
    }
  }
}

TEST(a_gpu_takes_quantised_heads) {
  if (!has_gpu()) return;
  for (const HeadFormat head : {HeadFormat::kW8, HeadFormat::kW6}) {
    for (const int tp : {1, 2}) {
      const TempFolder temp;
      ModelFolder folder =
          make_folder(temp.path(), small_llama(), Scheme::kFloat, DataType::kFp16, tp);
      folder.lm_head = head;
      write_weight_files(&folder);
      LoadOptions options;
      options.lm_head = head;
      compare(folder, options);
    }
  }
}

TEST(synthetic_weights_of_a_gpu_are_those_of_the_cpu) {
  if (!has_gpu()) return;
  for (const Scheme scheme : {Scheme::kFloat, Scheme::kW8A16, Scheme::kW8A8, Scheme::kW6Ax}) {
    LoadOptions options;
    options.dtype = DataType::kBf16;
    options.scheme = scheme;
    options.synthetic = true;
    for (const HeadFormat head : {HeadFormat::kFloat, HeadFormat::kW8, HeadFormat::kW6}) {
      options.lm_head = head;
      compare(make_folder("none", small_opt(), scheme, DataType::kBf16, 2), options);
      ModelConfig config = small_llama();
      config.ffn_bias = true;
      compare(make_folder("none", config, scheme, DataType::kBf16, 1), options);
    }
  }
}

TEST(files_of_many_blocks_take_turns_on_two_pinned_buffers) {
  if (!has_gpu()) return;
  ModelConfig config = small_llama();
  config.hidden_size = 384;  // weights of up to 37 KB, in blocks of 4 KB
  for (const Scheme scheme : {Scheme::kFloat, Scheme::kW8A16}) {
    const TempFolder temp;
    ModelFolder folder = make_folder(temp.path(), config, Scheme::kFloat, DataType::kFp32, 1);
    write_weight_files(&folder);
    LoadOptions options;
    options.scheme = scheme;
    const ModelWeights cpu = load_weights(folder, options);
    const LayerParts parts = layer_parts(folder, 1, 0);
    WeightReader reader(folder, options.progress, 0);
    DeviceTarget target(0, 4096);
    FileSource source(reader, options, target);
    const LinearForm form{scheme, Scheme::kFloat, 16};
    const LinearWeight up = source.linear("layers.1.gate_up", parts.up, form);
    const LinearWeight down = source.linear("layers.1.down", {parts.down}, form);
    const LinearWeight head = source.head("model.lm_head.weight.bin", 0, config.vocab_size);
    const Buffer table =
        source.floats("model.wte.weight.bin", {37, 384}, DataType::kFp16, FloatRole::kTable);
    target.finish();
    same(up, cpu.layers[1].up);
    same(down, cpu.layers[1].down);
    same(head, cpu.lm_head);
    same(table, cpu.embedding);
  }
}

TEST(six_bit_files_of_many_blocks) {
  if (!has_gpu()) return;
  ModelConfig config = small_llama();
  config.hidden_size = 384;
  for (const int64_t inter : {40, 48}) {  // tiles of 18 KB and more, in blocks of 4 KB
    config.inter_size = inter;
    const TempFolder temp;
    ModelFolder folder = make_folder(temp.path(), config, Scheme::kW6Ax, DataType::kFp16, 1);
    write_weight_files(&folder);
    LoadOptions options;
    options.scheme = Scheme::kW6Ax;
    const ModelWeights cpu = load_weights(folder, options);
    WeightReader reader(folder, options.progress, 0);
    DeviceTarget target(0, 4096);
    FileSource source(reader, options, target);
    const LinearWeight up = source.linear("layers.1.gate_up", layer_parts(folder, 1, 0).up,
                                          {Scheme::kW6Ax, Scheme::kW6Ax, 6});
    target.finish();
    same(up, cpu.layers[1].up);
  }
}

TEST(a_load_that_fails_gives_the_gpu_back) {
  if (!has_gpu()) return;
  const TempFolder temp;
  ModelFolder folder = make_folder(temp.path(), small_llama(), Scheme::kFloat, DataType::kFp16, 1);
  write_weight_files(&folder);
  const auto before = memory_in_use(Device::kCuda);
  LoadOptions options;
  options.device = Device::kCuda;
  options.progress = [](int64_t done, int64_t total) {
    if (2 * done > total) throw std::runtime_error("stop");
  };
  EXPECT_THROW(load_weights(folder, options), std::runtime_error, "stop");
  EXPECT(memory_in_use(Device::kCuda) == before);
  options.progress = {};
  EXPECT_EQ(load_weights(folder, options).layers.size(), size_t{2});
  EXPECT(memory_in_use(Device::kCuda) == before);
}
