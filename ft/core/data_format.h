// DataFormat: everything that decides how a linear layer's weight is stored and multiplied.
// Quantisation is data: a precision is a value of this struct, never a branch in a layer.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>

#include "ft/core/dtype.h"

namespace flexq_ft {

enum class Layout : uint8_t {
  kFrag16x128,       // 6-bit codes, format version 1 (flexq_kernels/pack.h)
  kFrag16x128Tiled,  // the same codes; scales lie as their tiles do (tile_scales), for a GPU
  kPanel,            // [ceil(N/16)][K][16], float codes: what the CPU's float GEMM streams
  kPanelPairs,       // [ceil(N/16)][ceil(K/2)][16][2], int8 codes: two k per 32-bit lane
  kRowMajor,         // [N][K], float or int8 codes: what a GPU reads
};

enum class Scheme : uint8_t { kFloat, kW8A16, kW8A8, kW6Ax };

constexpr bool is_w8(Scheme scheme) { return scheme == Scheme::kW8A16 || scheme == Scheme::kW8A8; }

// int8_mode is FasterTransformer's number for a scheme; it lives at the edges (INI, CLI) only.
int int8_mode(Scheme scheme);
bool scheme_of_int8_mode(int mode, Scheme* out);
// "fp16" stands for every float type here; the dtype says which.
const char* to_string(Scheme scheme);
std::ostream& operator<<(std::ostream& out, Scheme scheme);

// How the head's weight is stored; its activations stay as they are. kFloat is the type of the
// other floats, and "fp16" stands for all of them here too; the others are "w8" and "w6".
enum class HeadFormat : uint8_t { kFloat, kW8, kW6 };

Scheme scheme_of(HeadFormat head);
bool parse_head_format(const std::string& text, HeadFormat* out);
const char* to_string(HeadFormat head);
std::ostream& operator<<(std::ostream& out, HeadFormat head);

struct DataFormat {
  Scheme scheme = Scheme::kFloat;
  Layout layout = Layout::kPanel;
  DataType storage = DataType::kFp32;  // of the codes: a float type, kInt8, or kUint8 (packed)
  DataType scale = DataType::kFp32;    // kFp16 for w6ax, kFp32 for w8
  int64_t group_size = 0;              // along K; 0: one scale per output channel
  int act_bits = 16;                   // 16: activations stay as they are; 8 or 6: quantised

  bool quantizes_activations() const { return act_bits < 16; }
};

}  // namespace flexq_ft
