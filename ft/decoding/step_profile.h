// The times of the nodes of a step on a GPU, from event nodes inside a captured graph.
#pragma once

#include <functional>
#include <vector>

#include "ft/core/stream.h"
#include "ft/decoding/engine.h"
#include "ft/layers/workspace.h"

namespace flexq_ft {

// work puts the step on the stream and marks where each op ends; it is called with null once
// before, so that everything is loaded. kv_bytes: what the op "attention" must read of one layer.
std::vector<StepNode> profile_nodes(Stream stream, size_t kv_bytes,
                                    const std::function<void(StepMarker*)>& work);

}  // namespace flexq_ft
