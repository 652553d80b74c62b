// Where the weights of a GPU lie: in one allocation, of the size that the memory plan says, side by
// side; and that it is given back with the last of them. The driver is asked what it has allocated.
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <utility>
#include <vector>

#include "ft/core/cuda.h"
#include "ft/decoding/memory_plan.h"
#include "ft/weights/model_weights.h"
#include "tests/cpp/check.h"
#include "tests/cpp/folder_fixture.h"

using namespace flexq_test;

namespace {

constexpr size_t kPiece = size_t{2} << 20;  // a GPU gives memory in whole ones

bool has_gpu() {
  if (cuda::device_count() > 0) return true;
  std::printf("no GPU: %s\n", cuda::no_device_cause().c_str());
  return false;
}

struct Allocation {
  uintptr_t begin = 0;
  size_t bytes = 0;
};

// The one that an address lies in; of no bytes where there is none.
Allocation allocation_of(const void* address) {
  using Query = int (*)(unsigned long long*, size_t*, unsigned long long);
  void* const driver = dlopen("libcuda.so.1", RTLD_NOW);
  if (driver == nullptr) throw std::runtime_error("there is a GPU, but no libcuda.so.1");
  const auto query = reinterpret_cast<Query>(dlsym(driver, "cuMemGetAddressRange_v2"));
  unsigned long long begin = 0;
  size_t bytes = 0;
  if (query(&begin, &bytes, reinterpret_cast<uintptr_t>(address)) != 0) return {};
  return {static_cast<uintptr_t>(begin), bytes};
}

uintptr_t begin_of(const Buffer* buffer) { return reinterpret_cast<uintptr_t>(buffer->data()); }

// All that are defined, by address.
std::vector<const Buffer*> buffers_of(const ModelWeights& weights) {
  std::vector<const Buffer*> all = {&weights.embedding, &weights.positional};
  const auto norm = [&](const NormWeight& w) { all.insert(all.end(), {&w.weight, &w.bias}); };
  const auto linear = [&](const LinearWeight& w) {
    all.insert(all.end(), {&w.codes, &w.scales, &w.bias});
  };
  for (const LayerWeights& layer : weights.layers) {
    norm(layer.input_norm);
    norm(layer.post_norm);
    for (const LinearWeight* w : {&layer.qkv, &layer.o, &layer.up, &layer.down}) linear(*w);
    all.insert(all.end(), {&layer.o_bias, &layer.down_bias});
  }
  norm(weights.final_norm);
  linear(weights.lm_head);
  all.erase(std::remove_if(all.begin(), all.end(), [](const Buffer* b) { return !b->defined(); }),
            all.end());
  std::sort(all.begin(), all.end(),
            [](const Buffer* a, const Buffer* b) { return begin_of(a) < begin_of(b); });
  return all;
}

// Many times a piece in every scheme, unlike small_llama().
ModelConfig medium_llama() {
  ModelConfig config = small_llama();
  config.vocab_size = 5000;
  config.hidden_size = 1024;
  config.num_heads = 16;
  config.num_kv_heads = 4;
  config.head_dim = 64;
  config.inter_size = 2728;
  return config;
}

struct Case {
  ModelConfig config;
  Scheme scheme = Scheme::kFloat;
  HeadFormat head = HeadFormat::kFloat;
  int tp = 1;

  ModelFolder folder() const { return make_folder("none", config, scheme, DataType::kFp16, tp); }

  size_t region_bytes(int rank) const {
    EngineOptions options;
    options.device = Device::kCuda;
    options.dtype = DataType::kFp16;
    options.scheme = scheme;
    options.lm_head = head;
    options.max_len = config.max_positions;
    return weight_region_bytes(folder(), options, rank);
  }

  // As an engine loads them.
  ModelWeights load(int rank) const {
    LoadOptions options;
    options.scheme = scheme;
    options.lm_head = head;
    options.rank = rank;
    options.device = Device::kCuda;
    options.region_bytes = region_bytes(rank);
    options.synthetic = true;
    return load_weights(folder(), options);
  }
};

void check_region(const Case& c) {
  for (int rank = 0; rank < c.tp; ++rank) {
    const size_t planned = c.region_bytes(rank);
    const ModelWeights weights = c.load(rank);
    const std::vector<const Buffer*> all = buffers_of(weights);
    const Allocation region = allocation_of(all.front()->data());
    EXPECT_EQ(region.begin, begin_of(all.front()));
    EXPECT(planned <= region.bytes && region.bytes < planned + kPiece);
    uintptr_t end = region.begin;
    for (const Buffer* buffer : all) {
      EXPECT(end <= begin_of(buffer));
      end = begin_of(buffer) + buffer->bytes();
    }
    EXPECT(end <= region.begin + planned);
  }
}

}  // namespace

TEST(weights_lie_side_by_side_in_a_region_of_the_planned_size) {
  if (!has_gpu()) return;
  ModelConfig biased = small_llama();
  biased.qkv_bias = biased.dense_bias = biased.ffn_bias = true;
  for (const ModelConfig& config : {small_llama(), small_opt(), biased, medium_llama()}) {
    for (const Scheme scheme : {Scheme::kFloat, Scheme::kW8A16, Scheme::kW8A8, Scheme::kW6Ax}) {
      for (const HeadFormat head : {HeadFormat::kFloat, HeadFormat::kW8, HeadFormat::kW6}) {
        for (const int tp : {1, 2}) check_region({config, scheme, head, tp});
      }
    }
  }
}

TEST(a_region_goes_with_the_last_weight) {
  if (!has_gpu()) return;
  const Case c = {medium_llama(), Scheme::kW6Ax};
  const auto before = memory_in_use(Device::kCuda);
  const auto weights_in_use = [&] {
    const auto kind = static_cast<size_t>(MemoryKind::kWeights);
    return memory_in_use(Device::kCuda)[kind] - before[kind];
  };
  ModelWeights weights = c.load(0);
  const size_t held = weights_in_use();
  EXPECT(held > 0 && held <= c.region_bytes(0));
  const void* const first = weights.embedding.data();
  weights = c.load(0);  // the old ones go once the new ones are there
  EXPECT_EQ(weights_in_use(), held);
  EXPECT_EQ(allocation_of(first).bytes, size_t{0});
  Buffer last = std::move(weights.lm_head.codes);
  weights = {};
  EXPECT_EQ(weights_in_use(), last.bytes());
  EXPECT(allocation_of(last.data()).bytes >= c.region_bytes(0));
  const void* const region = last.data();
  last = {};
  EXPECT_EQ(allocation_of(region).bytes, size_t{0});
  EXPECT(memory_in_use(Device::kCuda) == before);
}
