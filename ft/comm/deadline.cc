#include "ft/comm/deadline.h"

#include <unistd.h>

#include <chrono>
#include <thread>

#include "ft/core/check.h"

namespace flexq_ft {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kSpin{20};         // a decode step is shorter
constexpr std::chrono::microseconds kNap{50};          // after that
constexpr std::chrono::milliseconds kFaultEvery{100};  // NCCL's own errors come within seconds
constexpr std::chrono::seconds kAbortTime{5};          // for aborted kernels to leave the GPU

// done() within so much time.
template <typename Duration>
bool happens_within(const std::function<bool()>& done, Duration limit) {
  const Clock::time_point begin = Clock::now();
  while (!done()) {
    if (Clock::now() - begin > limit) return false;
    std::this_thread::sleep_for(kNap);
  }
  return true;
}

[[noreturn]] void give_up(const std::function<bool()>& done, DeviceComm& comm,
                          const std::string& what, double seconds, const std::string& fault) {
  comm.abort();
  try {
    happens_within(done, kAbortTime);  // else freeing memory could wait for ever
  } catch (const Error&) {             // an aborted kernel may leave an error behind
  }
  char host[256] = "";
  gethostname(host, sizeof(host) - 1);
  const std::string where =
      detail::join(" on rank ", comm.rank(), " of ", comm.size(), " (", host, ")");
  if (!fault.empty()) {
    throw Error(ErrorKind::kLaunch, what + " failed" + where, fault,
                "NCCL_DEBUG=INFO in the environment shows what NCCL does");
  }
  throw Error(ErrorKind::kLaunch, detail::join(what, " did not end within ", seconds, " s", where),
              "another rank has stopped or is at another step, or the GPUs have lost each other",
              "look at what the other ranks say; NCCL_DEBUG=INFO shows what NCCL does");
}

}  // namespace

void wait_until(const std::function<bool()>& done, DeviceComm& comm, const std::string& what,
                double seconds) {
  const Clock::time_point begin = Clock::now();
  const auto deadline =
      begin + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  Clock::time_point next_look = begin + kFaultEvery;
  while (!done()) {
    const Clock::time_point now = Clock::now();
    if (now > deadline) give_up(done, comm, what, seconds, comm.fault());
    if (now > next_look) {
      const std::string fault = comm.fault();
      if (!fault.empty()) give_up(done, comm, what, seconds, fault);
      next_look = now + kFaultEvery;
    }
    if (now - begin > kSpin) std::this_thread::sleep_for(kNap);
  }
}

void wait_for(const cuda::Event& event, DeviceComm& comm, const std::string& what, double seconds) {
  if (comm.size() == 1) return event.wait();  // nobody to wait for but this GPU
  wait_until([&event] { return event.done(); }, comm, what, seconds);
}

}  // namespace flexq_ft
