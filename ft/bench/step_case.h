// A model of synthetic weights on the current GPU, and a decode step of sequences with so many
// cached tokens each: what the step kernel is measured and tested with, beside the Decoder that
// runs the same step op by op.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "ft/decoding/gpu_device.h"
#include "ft/decoding/kv_cache.h"
#include "ft/kernels/random_fill.h"
#include "ft/models/decoder.h"
#include "ft/step/step_kernel.h"
#include "ft/weights/synthetic_source.h"

namespace flexq_ft {

class StepCase {
 public:
  // contexts: cached tokens of every sequence; a step may have the first few of them.
  StepCase(ModelFolder folder, const EngineOptions& options, const std::vector<int64_t>& contexts)
      : folder_(std::move(folder)),
        options_(options),
        contexts_(contexts),
        gpu_(open_gpu(folder_, options_, 0)),
        decoder_(folder_.config, load(), limits(), make_single_comm(), gpu_->compute()),
        cache_(folder_.config.num_layers, page_count(), folder_.config.num_kv_heads,
               folder_.config.head_dim, *options_.dtype, Device::kCuda),
        ids_(ints(contexts.size())),
        positions_(ints(contexts.size())),
        offsets_(ints(contexts.size() + 1)),
        rows_(ints(contexts.size())),
        pages_(ints(contexts.size() * static_cast<size_t>(max_pages()))),
        logits_(DataType::kFp32, {static_cast<int64_t>(contexts.size()), folder_.config.vocab_size},
                MemoryKind::kWorkspace, Device::kCuda) {
    std::vector<int32_t> ids, positions, offsets{0}, rows, pages;
    int32_t page = 0;
    for (size_t s = 0; s < contexts.size(); ++s) {
      ids.push_back(static_cast<int32_t>((s * 7 + 3) % folder_.config.vocab_size));
      positions.push_back(static_cast<int32_t>(contexts[s]));
      offsets.push_back(static_cast<int32_t>(s + 1));
      rows.push_back(static_cast<int32_t>(s));
      for (int64_t i = 0; i < max_pages(); ++i) {
        pages.push_back(i < pages_for(contexts[s] + 1) ? page++ : 0);
      }
    }
    put(ids_, ids);
    put(positions_, positions);
    put(offsets_, offsets);
    put(rows_, rows);
    // Pages far apart, and in no order.
    const int32_t turn = page / 2 + 1;
    for (int32_t& p : pages) p = page > 2 ? (page - 1 - p + turn) % page : p;
    put(pages_, pages);
    fill_cache();
  }

  Stream stream() { return gpu_->queue.stream(); }
  const ModelFolder& folder() const { return folder_; }
  const KvCache& cache() const { return cache_; }
  Tensor logits(int64_t sequences) const {
    return logits_.tensor(DataType::kFp32, {sequences, folder_.config.vocab_size});
  }

  StepModel model() const {
    return {folder_.config,  decoder_.weights(), decoder_.rope(),
            cache_.layers(), *options_.dtype,    options_.max_len};
  }

  // A step of sequences [first, first + count).
  RaggedBatch batch(int64_t first, int64_t count) const {
    const auto part = [&](const Buffer& buffer, int64_t columns, int64_t rows) {
      return ConstTensor(static_cast<int32_t*>(buffer.data()) + first * columns, DataType::kInt32,
                         columns > 1 ? Shape{rows, columns} : Shape{rows}, Device::kCuda);
    };
    RaggedBatch batch;
    batch.ids = part(ids_, 1, count);
    batch.positions = part(positions_, 1, count);
    batch.offsets = ConstTensor(offsets_.data(), DataType::kInt32, {count + 1}, Device::kCuda);
    batch.context = batch.positions;
    batch.pages = part(pages_, max_pages(), count);
    batch.decodes = count;
    return batch;
  }

  // Random K and V, the same every time.
  void fill_cache() {
    uint64_t key = 1;
    for (const KvPages& layer : cache_.layers()) {
      for (const Tensor& pages : {layer.k, layer.v}) {
        invokeRandomFill(pages, {key++, 0.0f, 1.7f}, 0, stream());
      }
    }
  }

  // Op by op.
  void run_ops(Tensor logits, const RaggedBatch& batch) {
    decoder_.forward(batch, cache_.layers(), {});
    decoder_.logits(logits,
                    ConstTensor(rows_.data(), DataType::kInt32, {batch.sequences()}, Device::kCuda),
                    {});
  }

  // Bytes that a step of the first sequences cannot but read.
  size_t step_bytes(int64_t sequences) const {
    const ModelWeights& weights = decoder_.weights();
    size_t bytes = weights.lm_head.bytes();
    for (const LayerWeights& layer : weights.layers) {
      bytes += layer.qkv.bytes() + layer.o.bytes() + layer.up.bytes() + layer.down.bytes();
    }
    const ModelConfig& config = folder_.config;
    for (int64_t s = 0; s < sequences; ++s) {
      bytes += static_cast<size_t>(4 * config.num_layers * config.num_kv_heads * config.head_dim *
                                   contexts_[static_cast<size_t>(s)]);
    }
    return bytes;
  }

 private:
  ModelWeights load() const {
    LoadOptions load;
    load.dtype = *options_.dtype;
    load.scheme = *options_.scheme;
    load.policy = options_.policy.value_or(folder_.policy);
    load.device = Device::kCuda;
    load.synthetic = true;
    return load_weights(folder_, load);
  }
  DecoderLimits limits() const {
    const auto count = static_cast<int64_t>(contexts_.size());
    return {*options_.dtype, options_.max_len, count, count, count};
  }
  int64_t max_pages() const { return pages_for(options_.max_len); }
  int64_t page_count() const {
    int64_t count = 0;
    for (const int64_t context : contexts_) count += pages_for(context + 1);
    return count;
  }
  static Buffer ints(size_t count) {
    return Buffer(count * sizeof(int32_t), MemoryKind::kWorkspace, Device::kCuda);
  }
  void put(const Buffer& to, const std::vector<int32_t>& values) {
    cuda::copy(to.data(), values.data(), values.size() * sizeof(int32_t), stream());
    cuda::synchronize(stream());
  }

  ModelFolder folder_;
  EngineOptions options_;
  std::vector<int64_t> contexts_;
  std::unique_ptr<GpuDevice> gpu_;
  Decoder decoder_;
  KvCache cache_;
  Buffer ids_, positions_, offsets_, rows_, pages_, logits_;
};

}  // namespace flexq_ft
