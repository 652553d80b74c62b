// Candidates, tables and the selector: which kernel does a problem, and what is said about it.
// Needs the kernels to be compiled, and no GPU.
#include <cmath>
#include <functional>
#include <sstream>
#include <string>

#include "flexq_kernels/gpu/selector.h"
#include "flexq_kernels/gpu/wgmma_gemm_guess.h"
#include "tests/cpp/check.h"

namespace {

using namespace flexq_kernels;
using namespace flexq_kernels::gpu;

Device hopper() { return {9, 0, 132, 232448, 233472, 50 << 20, "Test H100"}; }
Device ampere() { return {8, 6, 84, 101376, 102400, 6 << 20, "Test A6000"}; }

const std::string kHead = "# flexq w6ax choices 1\n# gpu Test H100\n";

std::string shown(const Candidate& candidate) {
  return std::string(family_name(candidate)) + " " + config_text(candidate);
}

// The built-in rows of an H200, where the build has all families for it.
void for_rows_of_h200(const std::function<void(const GemmProblem&, const Candidate&, double)>& f) {
  if (!wgmma_why_not({64, 4096, 4096, 8}, hopper()).empty()) return;
  std::istringstream rows(ChoiceTable::parse(built_in_choices("NVIDIA H200")).text());
  int64_t n = 0, k = 0, m = 0;
  std::string line, family, config, us;
  while (std::getline(rows, line)) {
    std::istringstream cells(line);
    if (!(cells >> n >> k >> m)) continue;
    cells >> family;
    std::getline(cells >> std::ws, config, '\t');
    cells >> us;
    const auto candidate = parse_candidate(family, config);
    EXPECT(candidate.has_value());
    if (candidate) f({m, n, k, 8}, *candidate, std::stod(us));
  }
}

}  // namespace

TEST(every_candidate_is_read_back_from_its_text) {
  for (const Device& device : {hopper(), ampere()}) {
    for (const int64_t m : {1, 8, 9, 16, 17, 33, 64, 65, 513, 4096}) {
      for (const int act_bits : {6, 8}) {
        const GemmProblem problem{m, 4096, 11008, act_bits};
        const std::vector<Candidate> all = candidates(problem, device);
        EXPECT(!all.empty());
        for (const Candidate& one : all) {
          const auto again = parse_candidate(family_name(one), config_text(one));
          EXPECT(again.has_value());
          if (again) EXPECT_EQ(shown(*again), shown(one));
        }
      }
    }
  }
  EXPECT(!parse_candidate("stream", "tiles=many"));
  EXPECT(!parse_candidate("magic", "tiles=1"));
}

TEST(families_that_do_not_take_a_problem_say_why) {
  std::vector<Refusal> refusals;
  candidates({4096, 4096, 4096, 6}, ampere(), &refusals);
  bool wgmma = false, stream = false;
  for (const Refusal& refusal : refusals) {
    EXPECT(!refusal.reason.empty());
    wgmma = wgmma || refusal.family == "wgmma";
    stream = stream || refusal.family == "stream";
  }
  EXPECT(wgmma && stream);
}

TEST(a_table_is_read_and_written) {
  ChoiceTable table("Test H100");
  table.set(64, 128, 8, {"stream", "a=1 b=2", 5.25});
  table.set(64, 128, 1, {"stream", "a=1", 4.5});
  table.set(64, 256, 1, {"mma", "c", 7});
  const ChoiceTable again = ChoiceTable::parse(table.text());
  EXPECT_EQ(again.text(), table.text());
  EXPECT_EQ(again.gpu(), std::string("Test H100"));
  EXPECT_EQ(again.find(64, 128, 1)->config, std::string("a=1"));
  EXPECT_EQ(again.find(64, 128, 2)->config, std::string("a=1 b=2"));    // up to the row's m
  EXPECT_EQ(again.find(64, 128, 999)->config, std::string("a=1 b=2"));  // the last: all above
  EXPECT_EQ(again.find(64, 256, 3)->family, std::string("mma"));
  EXPECT(again.find(64, 512, 1) == nullptr);
  EXPECT(again.find(32, 128, 1) == nullptr);
}

TEST(what_is_no_table_is_refused_with_its_line) {
  for (const std::string text :
       {"n\tk\n", "# flexq w6ax choices 1\n1\t2\t3\n", "# flexq w6ax choices 1\na\tb\tc\td\te\tf\n",
        "# flexq w6ax choices 1\n99999999999999999999\t1\t1\td\te\t1\n"}) {
    EXPECT_THROW(ChoiceTable::parse(text), std::invalid_argument, "table of W6Ax choices, line");
  }
}

TEST(the_selector_takes_the_table_and_else_the_default) {
  const GemmProblem problem{8, 4096, 4096, 6};
  const std::vector<Candidate> all = candidates(problem, hopper());
  EXPECT(all.size() > 1);
  const Selector without(hopper());
  EXPECT_EQ(shown(without.choose(problem).candidate), shown(all.front()));
  EXPECT_EQ(without.choose(problem).why, std::string("default"));

  const std::string row = "4096\t4096\t8\t" + std::string(family_name(all.back())) + "\t" +
                          config_text(all.back()) + "\t5.00\n";
  const Selector with(hopper(), kHead + row);
  EXPECT_EQ(shown(with.choose(problem).candidate), shown(all.back()));
  EXPECT_EQ(with.choose(problem).why, std::string("table"));
  EXPECT(with.explain(problem).find("(table)") != std::string::npos);

  const Selector stale(hopper(), kHead + "4096\t4096\t8\tstream\tgone=1\t5.00\n");
  EXPECT_EQ(shown(stale.choose(problem).candidate), shown(all.front()));
  EXPECT(stale.choose(problem).why.find("gone=1") != std::string::npos);

  const Selector other(ampere(), kHead + row);
  EXPECT(other.note().find("not Test A6000") != std::string::npos);
  EXPECT_EQ(other.choose(problem).why, std::string("default"));
}

// Where no table is, as on an H100: the family that was the faster one on an H200.
TEST(the_default_is_of_the_measured_family) {
  for_rows_of_h200([](const GemmProblem& problem, const Candidate& measured, double) {
    const Candidate guess = candidates(problem, hopper()).front();
    std::ostringstream ours, theirs;
    ours << problem << ": " << family_name(guess);
    theirs << problem << ": " << family_name(measured);
    EXPECT_EQ(ours.str(), theirs.str());
  });
}

// Of 96 tokens or more; of fewer, GPUs that were measured differ in the clusters that fit at once.
TEST(the_guess_of_a_time_is_near_the_measured_one) {
  double logs = 0;
  int count = 0;
  for_rows_of_h200([&](const GemmProblem& problem, const Candidate& measured, double us) {
    if (problem.m < 96) return;
    const auto guessed = [&](const Candidate& one) {
      return wgmma_guessed_us(problem, std::get<WgmmaConfig>(one), hopper());
    };
    EXPECT(guessed(measured) > 0.8 * us && guessed(measured) < 1.25 * us);
    // No config that would take far longer than the best one comes before it.
    EXPECT(guessed(measured) < 1.15 * guessed(candidates(problem, hopper()).front()));
    logs += std::log(guessed(measured) / us);
    ++count;
  });
  if (count > 0) EXPECT(std::abs(logs / count) < 0.05);
}

TEST(what_needs_a_workspace_is_chosen_as_any_other) {
  const GemmProblem problem{2048, 2048, 576, 6};
  for (const Candidate& one : candidates(problem, hopper())) {  // none splits without sm_90a
    if (!needs_workspace(one)) continue;
    const Selector with(hopper(), kHead + "2048\t576\t2048\t" + family_name(one) + "\t" +
                                      config_text(one) + "\t5.00\n");
    EXPECT_EQ(shown(with.choose(problem).candidate), shown(one));
    EXPECT_EQ(with.choose(problem).why, std::string("table"));
  }
}
