#include "ft/step/work_plan.h"

#include <algorithm>
#include <numeric>

#include "ft/core/check.h"
#include "ft/step/args.h"

namespace flexq_ft::step {

std::vector<uint32_t> plan_work(const std::vector<PlannedOp>& ops, int blocks) {
  FLEXQ_FT_CHECK_LE(1, blocks, "blocks of a work plan");
  std::vector<uint32_t> words;
  std::vector<int64_t> load(static_cast<size_t>(blocks), 0);
  std::vector<size_t> order(load.size());
  for (const PlannedOp& op : ops) {
    FLEXQ_FT_CHECK_LE(op.units, int64_t{kMostUnits}, "units of an op");
    std::vector<int64_t> count(load.size(), op.units / blocks);
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return load[a] < load[b]; });
    const auto spare = static_cast<size_t>(op.units % blocks);
    for (size_t i = 0; i < spare; ++i) ++count[order[i]];
    int64_t first = 0;
    for (size_t b = 0; b < load.size(); ++b) {
      words.push_back(static_cast<uint32_t>(first << 16 | count[b]));
      first += count[b];
      load[b] += count[b] * op.unit_bytes;
    }
  }
  return words;
}

}  // namespace flexq_ft::step
