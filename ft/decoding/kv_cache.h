// The paged KV cache: which pages a sequence holds is plain data (PagePool), the memory behind them
// is one allocation (KvCache), untouched until a page is first written.
#pragma once

#include <cstdint>
#include <vector>

#include "ft/core/buffer.h"
#include "ft/kernels/paged_kv.h"

namespace flexq_ft {

constexpr int64_t pages_for(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

// Page ids that are free. The page given back last is taken first: its memory is warm.
class PagePool {
 public:
  explicit PagePool(int64_t pages);

  int64_t size() const { return static_cast<int64_t>(taken_.size()); }
  int64_t available() const { return static_cast<int64_t>(free_.size()); }

  // Pages enough for so many tokens, in the order of their positions. available() must suffice.
  std::vector<int32_t> take(int64_t tokens);

  // Every page must be taken.
  void give_back(const std::vector<int32_t>& pages);

 private:
  std::vector<int32_t> free_;  // the back is taken first
  std::vector<bool> taken_;
};

class KvCache {
 public:
  KvCache(int64_t layers, int64_t pages, int64_t kv_heads, int64_t head_dim, DataType dtype,
          Device device = Device::kCpu);

  const std::vector<KvPages>& layers() const { return layers_; }
  // Of a GPU no sequence's: what is padded writes there.
  int32_t last_page() const { return static_cast<int32_t>(layers_[0].k.dim(0) - 1); }

  static size_t bytes(int64_t layers, int64_t pages, int64_t kv_heads, int64_t head_dim,
                      DataType dtype);

 private:
  Buffer memory_;
  std::vector<KvPages> layers_;
};

}  // namespace flexq_ft
