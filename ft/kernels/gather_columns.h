// The columns of a matrix that is cut among ranks, on their way through an all-gather, which wants
// parts of one size: rank r has columns [r * local, (r + 1) * local), the last ranks fewer.
//
// invokePadColumns: out [rows, local] <- x [rows, n], n <= local; zeros behind.
// invokeGatherColumns: out [rows, columns] <- parts [ranks, rows, local], padding left out;
//   columns <= ranks * local.
// All fp32 and on one device; copies, so the bits stay.
#pragma once

#include "ft/core/stream.h"
#include "ft/core/tensor.h"

namespace flexq_ft {

void invokePadColumns(Tensor out, ConstTensor x, Stream stream);
void invokeGatherColumns(Tensor out, ConstTensor parts, Stream stream);

}  // namespace flexq_ft
