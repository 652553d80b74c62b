// The weights of one rank, in the layouts that the device's GEMMs stream: panels on the CPU, rows
// ([n, k], Layout::kRowMajor) on a GPU; six-bit ones in their tiles on both.
#pragma once

#include <string>
#include <vector>

#include "ft/core/buffer.h"
#include "ft/core/row_order.h"
#include "ft/weights/model_folder.h"
#include "ft/weights/weight_reader.h"

namespace flexq_ft {

// y [m, n] = x [m, k] · wᵀ + bias. A description that is complete: layers/linear.h needs no more.
struct LinearWeight {
  std::string name;  // "layers.3.qkv", "lm_head"
  DataFormat format;
  int64_t n = 0;  // of this rank
  int64_t k = 0;
  RowOrder rows;  // where they lie
  Buffer codes;   // in format.layout
  Buffer scales;  // w6ax: fp16 [groups, n], or tiled (format.layout); w8: fp32 [n]; float: none
  float act_scale = 0.0f;  // w8a8: of all inputs, static; 0: each token has its own
  Buffer bias;  // fp32 [n], or none. Row-parallel biases are the layer's, added after all-reduce

  size_t bytes() const { return codes.bytes() + scales.bytes() + bias.bytes(); }
};

struct NormWeight {
  Buffer weight;  // [hidden] in the compute type
  Buffer bias;    // LayerNorm only
};

struct LayerWeights {
  NormWeight input_norm;
  LinearWeight qkv;
  LinearWeight o;
  Buffer o_bias;  // fp32 [hidden], or none
  NormWeight post_norm;
  LinearWeight up;    // "gate_up": both parts' rows, in its order; or "fc1"
  LinearWeight down;  // "down" or "fc2"
  Buffer down_bias;   // fp32 [hidden], or none
};

struct ModelWeights {
  Buffer embedding;   // [vocab, hidden], compute type
  Buffer positional;  // [max_positions, hidden] or none
  std::vector<LayerWeights> layers;
  NormWeight final_norm;
  LinearWeight lm_head;  // the rank's rows of the head: ceil(vocab / ranks), the last ranks' fewer
};

struct LoadOptions {
  DataType dtype = DataType::kFp16;  // compute type
  Scheme scheme = Scheme::kFloat;    // differs from the folder's only for float files: w8 at load
  Policy policy;
  HeadFormat lm_head = HeadFormat::kFloat;  // differs from the folder's only if synthetic
  int rank = 0;
  Device device = Device::kCpu;  // a GPU: the current one
  size_t region_bytes = 0;       // a GPU: of the allocation that all are cut from; 0: of none
  bool synthetic = false;        // random weights instead of the files', of any scheme
  LoadProgress progress = {};    // of the files; may be empty
};

// Reads every file of the rank, checks every size, repacks; when it returns everything is in its
// place, on a GPU too. Throws Error{kWeight} listing all missing, short and long files at once,
// before anything is loaded.
ModelWeights load_weights(const ModelFolder& folder, const LoadOptions& options);

}  // namespace flexq_ft
