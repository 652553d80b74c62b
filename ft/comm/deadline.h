// Waiting for work that needs other ranks: with a deadline, because a rank that is lost leaves the
// others inside a collective for ever.
#pragma once

#include <functional>
#include <string>

#include "ft/comm/device_comm.h"
#include "ft/core/cuda.h"

namespace flexq_ft {

constexpr double kStepSeconds = 60.0;

// Blocks until the event has happened. After so many seconds, or once the comm reports a fault:
// aborts the comm and throws Error{kLaunch} that names this rank, its host and `what` ("step 12").
// What ran on the GPU has then ended without its results, and the comm is of no more use. Errors of
// the device itself are thrown as they are.
void wait_for(const cuda::Event& event, DeviceComm& comm, const std::string& what,
              double seconds = kStepSeconds);

// The same, for whatever done() says.
void wait_until(const std::function<bool()>& done, DeviceComm& comm, const std::string& what,
                double seconds = kStepSeconds);

}  // namespace flexq_ft
