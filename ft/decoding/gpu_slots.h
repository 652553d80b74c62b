// GpuSlots: what a GPU knows of every slot's sequence, and the buffers that one step is built in
// and sampled into. All of it is allocated once: captured graphs hold its addresses.
#pragma once

#include "ft/core/buffer.h"
#include "ft/decoding/step_runner.h"
#include "ft/kernels/device_sampling.h"
#include "ft/kernels/step_inputs.h"

namespace flexq_ft {

struct GpuSlotSizes {
  int64_t slots = 0;
  int64_t max_len = 0;
  int64_t tokens = 0;      // most of a step
  int64_t logit_rows = 0;  // most of a step
  int64_t vocab = 0;

  size_t bytes() const;
};

class GpuSlots {
 public:
  GpuSlots(const GpuSlotSizes& sizes, Stream stream);

  // Uploads a new sequence.
  void admit(int64_t slot, const Sequence& sequence, Stream stream);

  // Views of a step of so many sequences, tokens and rows of logits.
  StepInputs inputs(int64_t sequences, int64_t tokens, int64_t rows) const;
  RaggedBatch batch(int64_t sequences, int64_t tokens, int64_t decodes, int64_t longest) const;
  Tensor items(int64_t sequences) const;  // of steps that are not graphs
  SlotTensors slots() const;

  Tensor logits(int64_t rows) const;  // [rows, vocab] fp32
  Tensor samples(int64_t rows) const;

  // Samples the logits of the step's rows into samples().
  void sample(int64_t rows, Stream stream) const;

 private:
  DeviceSlots sampling() const;

  GpuSlotSizes sizes_;
  int64_t max_pages_;
  Buffer params_, history_, tokens_, finished_, words_, slot_pages_;
  Buffer ids_, positions_, offsets_, context_, pages_, token_rows_, row_slots_, items_;
  Buffer logits_, samples_, sample_workspace_;
};

}  // namespace flexq_ft
