#include "ft/core/error.h"
#include "ft/kernels/gemm_table.h"
#include "tests/cpp/check.h"

using flexq_ft::DataType;
using flexq_ft::Error;
using flexq_ft::GemmProblem;
using flexq_ft::GemmRow;
using flexq_ft::GemmTable;
using flexq_ft::Scheme;

namespace {

GemmRow row(int64_t m, const char* kernel, const char* config) {
  return {{Scheme::kFloat, DataType::kFp16, m, 576, 1536}, kernel, config, 12.5, "note"};
}

GemmProblem problem(int64_t m) { return {Scheme::kFloat, DataType::kFp16, m, 576, 1536}; }

}  // namespace

TEST(buckets_are_powers_of_two) {
  const int64_t wanted[][2] = {{1, 1}, {2, 2}, {3, 4}, {16, 16}, {17, 32}, {1025, 2048}};
  for (const auto& [m, bucket] : wanted) EXPECT_EQ(flexq_ft::m_bucket(m), bucket);
}

TEST(problem_takes_the_bucket_above_it) {
  GemmTable table("a GPU", 130101);
  table.set(row(4, "skinny", "rows=16"));
  table.set(row(64, "cublaslt", "1c.0.3"));
  EXPECT_EQ(table.find(problem(1))->problem.m, 4);
  EXPECT_EQ(table.find(problem(4))->problem.m, 4);
  EXPECT_EQ(table.find(problem(5))->problem.m, 64);
  EXPECT_EQ(table.find(problem(500))->problem.m, 64);
  EXPECT(table.find({Scheme::kW8A16, DataType::kFp16, 4, 576, 1536}) == nullptr);
  EXPECT(table.find({Scheme::kFloat, DataType::kBf16, 4, 576, 1536}) == nullptr);
}

TEST(text_is_read_as_it_was_written) {
  GemmTable table("NVIDIA H100 80GB HBM3", 130101);
  table.set(row(1, "skinny", "rows=16 warps=8 stages=4"));
  table.set(row(2048, "cublaslt", "1c.0.3"));
  const GemmTable back = GemmTable::parse(table.text());
  EXPECT_EQ(back.text(), table.text());
  EXPECT_EQ(back.gpu(), "NVIDIA H100 80GB HBM3");
  EXPECT_EQ(back.library_version(), size_t{130101});
  EXPECT_EQ(back.size(), size_t{2});
  EXPECT_EQ(back.find(problem(1))->config, "rows=16 warps=8 stages=4");
}

TEST(faults_are_named_with_their_line) {
  const std::string head = "# flexq-ft gemm table 1\n# gpu X\n";
  EXPECT_THROW(GemmTable::parse("nothing"), Error, "line 1");
  EXPECT_THROW(GemmTable::parse("# flexq-ft gemm table 1\n"), Error, "# gpu NAME");
  EXPECT_THROW(GemmTable::parse(head + "fp16\tfp16\t1\n"), Error, "3 columns");
  EXPECT_THROW(GemmTable::parse(head + "w6ax\tfp16\t1\t1\t1\tskinny\tc\t1\t\n"), Error, "'w6ax'");
  EXPECT_THROW(GemmTable::parse(head + "fp16\tfp16\t1\t1\t3\tskinny\tc\t1\t\n"), Error, "line 3");
  EXPECT_THROW(GemmTable::parse(head + "fp16\tfp16\t1\t1x\t1\tskinny\tc\t1\t\n"), Error, "'1x'");
}

TEST(older_rows_fill_gaps_and_algorithms_belong_to_their_version) {
  GemmTable older("a GPU", 130000);
  older.set(row(1, "skinny", "old"));
  older.set(row(2, "skinny", "old"));
  older.set(row(64, "cublaslt", "1c"));
  GemmTable same("a GPU", 130000), newer("a GPU", 130101), other("another", 130000);
  for (GemmTable* table : {&same, &newer, &other}) {
    table->set(row(1, "skinny", "new"));
    table->add_missing(older);
    EXPECT_EQ(table->find(problem(1))->config, "new");
  }
  EXPECT_EQ(same.size(), size_t{3});
  EXPECT_EQ(newer.size(), size_t{2});
  EXPECT_EQ(other.size(), size_t{1});
}

TEST(tables_compiled_in_can_be_read) {
  for (const std::string& text : flexq_ft::gemm_table_texts()) {
    const GemmTable table = GemmTable::parse(text);
    EXPECT_EQ(flexq_ft::built_in_gemm_table(table.gpu()), text);
    EXPECT_EQ(table.text(), text);
  }
  EXPECT(flexq_ft::built_in_gemm_table("no such GPU").empty());
}
