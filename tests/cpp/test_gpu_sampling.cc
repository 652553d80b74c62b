// Sampling on a GPU against the same op on the CPU, slot by slot. Without a GPU only the host's
// side is tested. Small, so that it runs under compute-sanitizer.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "ft/core/buffer.h"
#include "ft/core/cuda.h"
#include "ft/kernels/device_sampling.h"
#include "tests/cpp/check.h"

using flexq_ft::Buffer;
using flexq_ft::ConstTensor;
using flexq_ft::DataType;
using flexq_ft::Device;
using flexq_ft::DeviceSample;
using flexq_ft::DeviceSlots;
using flexq_ft::Error;
using flexq_ft::MemoryKind;
using flexq_ft::SamplingParams;
using flexq_ft::Shape;
using flexq_ft::SlotParams;
using flexq_ft::Stream;
using flexq_ft::Tensor;
using Ids = std::vector<int64_t>;

namespace {

constexpr int64_t kMaxLen = 64;

// A tensor of bytes on a device, from and to the host.
class Memory {
 public:
  Memory(Device device, DataType dtype, Shape shape, const void* from)
      : buffer_(dtype, shape, MemoryKind::kWorkspace, device) {
    put(from);
  }
  void put(const void* from) {
    if (tensor().device() == Device::kCpu) {
      std::memcpy(buffer_.data(), from, buffer_.bytes());
    } else {
      flexq_ft::cuda::copy(buffer_.data(), from, buffer_.bytes(), Stream());
      flexq_ft::cuda::synchronize(Stream());
    }
  }
  Tensor tensor() const { return buffer_.tensor(); }
  template <typename T>
  std::vector<T> get() const {
    std::vector<T> host(buffer_.bytes() / sizeof(T));
    if (tensor().device() == Device::kCpu) {
      std::memcpy(host.data(), buffer_.data(), buffer_.bytes());
    } else {
      flexq_ft::cuda::copy(host.data(), buffer_.data(), buffer_.bytes(), Stream());
      flexq_ft::cuda::synchronize(Stream());
    }
    return host;
  }

 private:
  Buffer buffer_;
};

struct Case {
  SamplingParams params;
  Ids end_ids;
  Ids prompt;
};

struct Result {
  std::vector<DeviceSample> samples;
  std::vector<int32_t> history, tokens, finished;
};

// steps tokens for one slot a case, each step over the same logits.
Result run(Device device, const std::vector<Case>& cases, const std::vector<float>& logits,
           int64_t vocab, int steps) {
  const auto slots = static_cast<int64_t>(cases.size());
  std::vector<uint8_t> params;
  std::vector<int32_t> history(static_cast<size_t>(slots * kMaxLen), -1), tokens, words, rows;
  for (const Case& c : cases) {
    std::vector<int32_t> encoded;
    const std::vector<uint8_t> bytes = flexq_ft::encode_slot(
        c.params, c.end_ids, static_cast<int64_t>(c.prompt.size()), kMaxLen, &encoded);
    params.insert(params.end(), bytes.begin(), bytes.end());
    encoded.resize(flexq_ft::kWordInts, -1);
    words.insert(words.end(), encoded.begin(), encoded.end());
    std::copy(c.prompt.begin(), c.prompt.end(),
              history.begin() + static_cast<int64_t>(tokens.size()) * kMaxLen);
    rows.push_back(static_cast<int32_t>(tokens.size()));
    tokens.push_back(static_cast<int32_t>(c.prompt.size()));
  }
  const std::vector<int32_t> none(cases.size(), 0);
  const auto bytes = static_cast<int64_t>(flexq_ft::sample_workspace_bytes(slots, vocab));
  const std::vector<uint8_t> poison(static_cast<size_t>(bytes), 0xff);
  Memory params_at(device, DataType::kUint8, Shape{slots, sizeof(SlotParams)}, params.data());
  Memory history_at(device, DataType::kInt32, Shape{slots, kMaxLen}, history.data());
  Memory tokens_at(device, DataType::kInt32, Shape{slots}, tokens.data());
  Memory finished_at(device, DataType::kInt32, Shape{slots}, none.data());
  Memory words_at(device, DataType::kInt32, Shape{slots, flexq_ft::kWordInts}, words.data());
  Memory rows_at(device, DataType::kInt32, Shape{slots}, rows.data());
  Memory out(device, DataType::kUint8, Shape{slots, sizeof(DeviceSample)}, poison.data());
  Memory workspace(device, DataType::kUint8, Shape{bytes}, poison.data());
  Memory logits_at(device, DataType::kFp32, Shape{slots, vocab}, logits.data());
  Result result;
  for (int step = 0; step < steps; ++step) {
    logits_at.put(logits.data());
    flexq_ft::invokeSample(out.tensor(), logits_at.tensor(), rows_at.tensor(),
                           {params_at.tensor(), history_at.tensor(), tokens_at.tensor(),
                            finished_at.tensor(), words_at.tensor()},
                           workspace.tensor(), Stream());
    const std::vector<DeviceSample> samples = out.get<DeviceSample>();
    result.samples.insert(result.samples.end(), samples.begin(), samples.end());
  }
  result.history = history_at.get<int32_t>();
  result.tokens = tokens_at.get<int32_t>();
  result.finished = finished_at.get<int32_t>();
  return result;
}

template <typename T>
T pick(std::mt19937& rng, std::initializer_list<T> values) {
  return values.begin()[rng() % values.size()];
}

Case random_case(std::mt19937& rng, int64_t vocab) {
  const auto id = [&] { return static_cast<int64_t>(rng() % static_cast<uint64_t>(vocab)); };
  Case c;
  c.params.temperature = pick(rng, {0.0, 0.4, 1.0, 1.0, 1.9});
  c.params.top_k = pick(rng, {0, 0, 1, 2, 5, 50, 1000, 100000});
  c.params.top_p = pick(rng, {0.0, 1e-9, 0.2, 0.5, 0.9, 0.99, 1.0, 1.0});
  c.params.min_p = pick(rng, {0.0, 0.0, 0.01, 0.3, 1.0});
  if (rng() % 3 == 0) {
    c.params.repetition_penalty = pick(rng, {0.5, 1.3});
  } else {
    c.params.presence_penalty = pick(rng, {0.0, 0.0, 0.9, -0.4});
  }
  c.params.seed = (static_cast<uint64_t>(rng()) << 32) | rng();
  c.params.min_tokens = pick(rng, {0, 0, 2});
  c.params.max_tokens = pick(rng, {1, 3, 100});
  for (int i = pick(rng, {0, 1, 3}); i > 0; --i) c.end_ids.push_back(id());
  for (int i = pick(rng, {1, 5, 40}); i > 0; --i) c.prompt.push_back(id());
  for (int i = pick(rng, {0, 0, 2, 40}); i > 0; --i) {
    c.params.bad_words.push_back({id()});
    c.params.bad_words.push_back({c.prompt.back(), id()});
    c.params.bad_words.push_back({id(), id(), id()});
    c.params.stop_words.push_back({c.prompt.back(), id()});
    c.params.stop_words.push_back({id(), id(), id()});
  }
  return c;
}

std::vector<float> random_logits(std::mt19937& rng, int64_t rows, int64_t vocab) {
  std::normal_distribution<float> normal;
  std::vector<float> logits;
  for (int64_t r = 0; r < rows; ++r) {
    const float spread = pick(rng, {0.0f, 0.001f, 0.5f, 3.0f, 15.0f, 1e4f});
    const bool ties = rng() % 3 == 0;
    const float fault = pick(rng, {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, INFINITY, NAN});
    for (int64_t i = 0; i < vocab; ++i) {
      const float x = normal(rng) * spread;
      logits.push_back(ties ? std::round(x) : x);
    }
    if (fault != 0.0f) logits[logits.size() - 1 - rng() % static_cast<size_t>(vocab)] = fault;
  }
  return logits;
}

void expect_same(const Result& cpu, const Result& gpu) {
  EXPECT(cpu.history == gpu.history);
  EXPECT(cpu.tokens == gpu.tokens);
  EXPECT(cpu.finished == gpu.finished);
  for (size_t i = 0; i < cpu.samples.size(); ++i) {
    const DeviceSample &a = cpu.samples[i], &b = gpu.samples[i];
    EXPECT_EQ(a.slot, b.slot);
    EXPECT_EQ(a.token, b.token);
    EXPECT_EQ(a.status, b.status);
    if (std::isfinite(a.logprob)) {
      EXPECT(std::abs(a.logprob - b.logprob) <= 2e-6 + 1e-6 * std::abs(a.logprob));
    } else {
      EXPECT_EQ(std::isnan(a.logprob), std::isnan(b.logprob));
    }
  }
}

}  // namespace

TEST(words_and_end_ids_have_a_limit_that_is_named) {
  SamplingParams params;
  params.bad_words.assign(2000, {1, 2});
  std::vector<int32_t> words;
  EXPECT_THROW(flexq_ft::encode_slot(params, {}, 1, 8, &words), Error,
               "2000 words of 4000 tokens together, 8000 entries; a GPU takes 4096");
  params.bad_words.clear();
  params.end_ids.assign(65, 3);
  EXPECT_THROW(flexq_ft::encode_slot(params, {}, 1, 8, &words), Error, "65 ids; a GPU takes 64");
}

TEST(a_minimum_beyond_the_longest_text_holds_to_its_end) {
  SamplingParams params;
  params.min_tokens = params.max_tokens = std::numeric_limits<int64_t>::max();
  std::vector<int32_t> words;
  const std::vector<uint8_t> bytes = flexq_ft::encode_slot(params, {3}, 5, 8, &words);
  flexq_ft::SlotParams slot;
  std::memcpy(&slot, bytes.data(), sizeof(slot));
  EXPECT(slot.hold_until >= 8);
}

TEST(tokens_faults_and_ends_are_those_of_the_cpu) {
  if (flexq_ft::cuda::device_count() == 0) return;
  std::mt19937 rng(11);
  for (int round = 0; round < 60; ++round) {
    const int64_t vocab = pick(rng, {1, 2, 7, 32, 33, 500, 1024, 1025, 2048, 2049, 5000, 9001});
    const int64_t rows = pick(rng, {1, 2, 9});
    std::vector<Case> cases;
    for (int64_t r = 0; r < rows; ++r) cases.push_back(random_case(rng, vocab));
    const std::vector<float> logits = random_logits(rng, rows, vocab);
    expect_same(run(Device::kCpu, cases, logits, vocab, 4),
                run(Device::kCuda, cases, logits, vocab, 4));
  }
}
