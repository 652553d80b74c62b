// out[t] = round(table[ids[t]] (+ positional[positions[t]])).
//   out        [tokens, hidden]  the compute type
//   ids, positions [tokens] int32; outside the tables: Error{kInternal} on the CPU, a row of zeros
//   on
//                  a GPU, where the caller has checked them
//   table      [vocab, hidden], positional [max_positions, hidden] (or undefined)  dtype of out
#pragma once

#include "ft/core/stream.h"
#include "ft/core/tensor.h"

namespace flexq_ft {

void invokeEmbedding(Tensor out, ConstTensor ids, ConstTensor table, ConstTensor positions,
                     ConstTensor positional, Stream stream);

}  // namespace flexq_ft
