// Which block computes what of each op of a step: whole units, so that a row's sum is one block's
// and depends on nothing but its k.
#pragma once

#include <cstdint>
#include <vector>

namespace flexq_ft::step {

// The units of one op, dealt to blocks: 16 rows of a product, of a gated up product eight channels
// (ft/core/row_order.h). An op without units (the attention) deals its work by itself.
struct PlannedOp {
  int64_t units = 0;
  int64_t unit_bytes = 0;  // that a block streams for one
};

struct UnitRange {
  int first = 0;
  int count = 0;
};

class WorkPlan {
 public:
  // Every block gets a contiguous range of each op, of the size of the others' or one more; what is
  // over goes to the blocks that have the fewest bytes so far. Throws Error{kInternal} for more
  // than kMostUnits.
  WorkPlan(const std::vector<PlannedOp>& ops, int blocks);

  int blocks() const { return blocks_; }
  UnitRange range(int op, int block) const;
  // Blocks that have any unit of an op.
  int participants(int op) const;
  // [ops][blocks], first << 16 | count.
  const std::vector<uint32_t>& words() const { return words_; }

 private:
  int blocks_;
  std::vector<uint32_t> words_;
};

}  // namespace flexq_ft::step
