// How much memory an engine is going to hold, known before anything is loaded.
#pragma once

#include <array>

#include "ft/decoding/engine.h"
#include "ft/models/decoder.h"

namespace flexq_ft {

constexpr int64_t kLogitRows = 64;  // rows of logits that teacher forcing makes at a time

// The limits of the decoder that an engine with these (resolved) options makes.
DecoderLimits decoder_limits(const EngineOptions& options);

struct MemoryPlan {
  std::array<size_t, kMemoryKinds> bytes{};  // by MemoryKind

  size_t& operator[](MemoryKind kind) { return bytes[static_cast<size_t>(kind)]; }
  size_t operator[](MemoryKind kind) const { return bytes[static_cast<size_t>(kind)]; }
  size_t total() const;
};

// Of one rank, on the options' device. options must be resolved, kv_pages included.
MemoryPlan plan_memory(const ModelFolder& folder, const EngineOptions& options, int rank);

// Room for all weights of a rank that are loaded, in one allocation: with norms and biases, whether
// there are any or not, and without the rotary table; about a thousandth too much for a large
// model.
size_t weight_region_bytes(const ModelFolder& folder, const EngineOptions& options, int rank);

// Of a GPU's free memory; not planned with. CUDA's modules, the products' library and graphs come
// after the plan (about 200 MiB together), NCCL's buffers too (about 150 MiB a communicator), and
// what blocks of the step kernel pass to each other (less than 16 MiB).
constexpr size_t kGpuReserve = size_t{512} << 20;

// What an engine may allocate on this host, by all of its ranks, or on the current GPU, by the one
// rank that has it; 0: not known.
size_t available_bytes(Device device);

// The pages of this rank's KV cache: for max_batch sequences of max_len if so many ranks of such a
// plan fit into the available bytes (0: not known), else as many as leave a tenth of them free. A
// rank has a GPU of its own, and may fill what is available there.
// Throws Error{kOutOfMemory}, with the numbers by kind and what would fit, if they are too few for
// one sequence.
int64_t fit_kv_pages(const ModelFolder& folder, const EngineOptions& options, int rank, int ranks,
                     size_t available);

}  // namespace flexq_ft
