#include "ft/decoding/kv_cache.h"

#include <cstring>

#include "tests/cpp/check.h"

using flexq_ft::KvCache;
using flexq_ft::PagePool;
using Pages = std::vector<int32_t>;

TEST(tokens_round_up_to_pages) {
  EXPECT_EQ(flexq_ft::pages_for(0), 0);
  EXPECT_EQ(flexq_ft::pages_for(1), 1);
  EXPECT_EQ(flexq_ft::pages_for(16), 1);
  EXPECT_EQ(flexq_ft::pages_for(17), 2);
}

TEST(no_page_belongs_to_two_sequences) {
  PagePool pool(5);
  const Pages first = pool.take(33);
  const Pages second = pool.take(17);
  EXPECT((first == Pages{0, 1, 2}));
  EXPECT((second == Pages{3, 4}));
  EXPECT_EQ(pool.available(), 0);
}

TEST(pages_given_back_are_taken_again_in_the_same_order) {
  PagePool pool(5);
  const Pages first = pool.take(33);
  const Pages second = pool.take(17);
  pool.give_back(first);
  EXPECT_EQ(pool.available(), 3);
  EXPECT((pool.take(48) == first));
  pool.give_back(second);
  EXPECT((pool.take(32) == second));
}

TEST(taking_more_than_there_is_changes_nothing) {
  PagePool pool(2);
  EXPECT_THROW(pool.take(33), flexq_ft::Error, "33 tokens");
  EXPECT_EQ(pool.available(), 2);
}

TEST(page_given_back_twice_or_never_taken_is_a_fault) {
  PagePool pool(3);
  const Pages pages = pool.take(16);
  pool.give_back(pages);
  EXPECT_THROW(pool.give_back(pages), flexq_ft::Error, "page 0 is not taken");
  EXPECT_THROW(pool.give_back({7}), flexq_ft::Error, "page 7 is not taken");
}

TEST(layers_have_their_own_memory) {
  const int64_t layers = 3, pages = 2, heads = 5, dim = 7;
  KvCache cache(layers, pages, heads, dim, flexq_ft::DataType::kFp16);
  EXPECT_EQ(cache.layers().size(), 3u);
  unsigned char mark = 1;
  for (const flexq_ft::KvPages& layer : cache.layers()) {
    EXPECT_EQ(layer.k.shape(), (flexq_ft::Shape{pages, heads, 16, dim}));
    std::memset(layer.k.raw(), mark++, layer.k.bytes());
    std::memset(layer.v.raw(), mark++, layer.v.bytes());
  }
  unsigned char expected = 1;
  for (const flexq_ft::KvPages& layer : cache.layers()) {
    for (const flexq_ft::Tensor& tensor : {layer.k, layer.v}) {
      const auto* bytes = static_cast<const unsigned char*>(tensor.raw());
      EXPECT_EQ(int{bytes[0]}, int{expected});
      EXPECT_EQ(int{bytes[tensor.bytes() - 1]}, int{expected});
      ++expected;
    }
  }
  EXPECT_EQ(KvCache::bytes(layers, pages, heads, dim, flexq_ft::DataType::kFp16),
            static_cast<size_t>(3 * 2 * 2 * 5 * 16 * 7 * 2));
}
