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

// [ops][blocks], words that first_unit() and unit_count() (args.h) read. Every block gets a
// contiguous range of each op, of the size of the others' or one more; what is over goes to the
// blocks that have the fewest bytes so far. Throws Error{kInternal} for more than kMostUnits.
std::vector<uint32_t> plan_work(const std::vector<PlannedOp>& ops, int blocks);

}  // namespace flexq_ft::step
