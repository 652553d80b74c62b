#include "ft/decoding/memory_plan.h"

#include "ft/decoding/kv_cache.h"
#include "tests/cpp/check.h"
#include "tests/cpp/folder_fixture.h"

using namespace flexq_ft;
using namespace flexq_test;

namespace {

EngineOptions resolved() {
  EngineOptions options;
  options.dtype = DataType::kFp32;
  options.scheme = Scheme::kFloat;
  options.max_len = 64;
  options.max_batch = 8;
  return options;
}

// What the engine holds with a cache of so many pages.
size_t total(const ModelFolder& folder, int64_t pages) {
  EngineOptions options = resolved();
  options.kv_pages = pages;
  return plan_memory(folder, options, 0).total();
}

}  // namespace

TEST(the_cache_shrinks_to_what_fits_and_keeps_one_whole_sequence) {
  const ModelFolder folder =
      make_folder("unused", small_llama(), Scheme::kFloat, DataType::kFp32, 1);
  const int64_t one = pages_for(64);
  EXPECT_EQ(fit_kv_pages(folder, resolved(), 0, 1, 0), 8 * one);  // nothing known: all
  EXPECT_EQ(fit_kv_pages(folder, resolved(), 0, 1, 2 * total(folder, 8 * one)), 8 * one);
  const int64_t half = fit_kv_pages(folder, resolved(), 0, 1, total(folder, 4 * one));
  EXPECT(half >= one && half < 4 * one);  // a tenth stays free
  EXPECT_EQ(fit_kv_pages(folder, resolved(), 0, 1, total(folder, one)), one);
  EXPECT_EQ(fit_kv_pages(folder, resolved(), 0, 2, 2 * total(folder, one)), one);
}

TEST(too_little_for_one_sequence_is_out_of_memory_with_a_length_that_fits) {
  const ModelFolder folder =
      make_folder("unused", small_llama(), Scheme::kFloat, DataType::kFp32, 1);
  const size_t less = total(folder, pages_for(64)) - 1;
  EXPECT_THROW(fit_kv_pages(folder, resolved(), 0, 1, less), Error, "the model needs");
  try {
    fit_kv_pages(folder, resolved(), 0, 1, less);
  } catch (const Error& error) {
    EXPECT(error.kind() == ErrorKind::kOutOfMemory);
    EXPECT(error.hint().find("--max-len 48") != std::string::npos);
  }
}
