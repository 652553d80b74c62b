// One way to do a product that bench gemm measures, and its times.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "ft/core/buffer.h"
#include "ft/core/stream.h"

namespace flexq_ft {

struct Contender {
  std::string implementation, config, note;
  // y of the rotation's weights; `rounded`: y is fp16 instead of fp32 or int32.
  std::function<void(int rotation, bool rounded, Stream stream, bool programmatic)> launch;
  std::function<void(Stream)> write_x;  // the kernel in front; null: x is as it was
  const Buffer* reference = nullptr;    // what y must be in fp32; null for the libraries'
  double first_us = 0;
  std::vector<double> samples, full_edges;
  double sustained = 0;

  bool ours() const { return reference != nullptr; }
};

}  // namespace flexq_ft
