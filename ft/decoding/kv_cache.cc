#include "ft/decoding/kv_cache.h"

namespace flexq_ft {

PagePool::PagePool(int64_t pages) : taken_(static_cast<size_t>(pages), false) {
  free_.reserve(static_cast<size_t>(pages));
  for (int64_t page = pages - 1; page >= 0; --page) free_.push_back(static_cast<int32_t>(page));
}

std::vector<int32_t> PagePool::take(int64_t tokens) {
  const int64_t count = pages_for(tokens);
  FLEXQ_FT_CHECK_LE(count, available(), "pages for ", tokens, " tokens");
  std::vector<int32_t> pages(free_.rbegin(), free_.rbegin() + count);
  free_.resize(free_.size() - static_cast<size_t>(count));
  for (int32_t page : pages) taken_[static_cast<size_t>(page)] = true;
  return pages;
}

void PagePool::give_back(const std::vector<int32_t>& pages) {
  for (auto page = pages.rbegin(); page != pages.rend(); ++page) {
    FLEXQ_FT_CHECK(*page >= 0 && *page < size() && taken_[static_cast<size_t>(*page)], "page ",
                   *page, " is not taken");
    taken_[static_cast<size_t>(*page)] = false;
    free_.push_back(*page);
  }
}

KvCache::KvCache(int64_t layers, int64_t pages, int64_t kv_heads, int64_t head_dim, DataType dtype,
                 Device device)
    : memory_(bytes(layers, pages, kv_heads, head_dim, dtype), MemoryKind::kKvCache, device) {
  const Shape shape{pages, kv_heads, kPageTokens, head_dim};
  const int64_t step = shape.count() * static_cast<int64_t>(size_of(dtype));
  char* next = static_cast<char*>(memory_.data());
  layers_.reserve(static_cast<size_t>(layers));
  for (int64_t layer = 0; layer < layers; ++layer) {
    layers_.push_back(
        {Tensor(next, dtype, shape, device), Tensor(next + step, dtype, shape, device)});
    next += 2 * step;
  }
}

size_t KvCache::bytes(int64_t layers, int64_t pages, int64_t kv_heads, int64_t head_dim,
                      DataType dtype) {
  return static_cast<size_t>(2 * layers * pages * kv_heads * kPageTokens * head_dim) *
         size_of(dtype);
}

}  // namespace flexq_ft
