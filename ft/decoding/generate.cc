#include "ft/decoding/generate.h"

#include <algorithm>
#include <chrono>
#include <map>

#include "ft/core/check.h"

namespace flexq_ft {

namespace {

using Clock = std::chrono::steady_clock;

double seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// The run of one list of requests; releases what it holds when it ends.
class Generation {
 public:
  Generation(Engine& engine, const std::vector<GenerateRequest>& requests,
             const TokenCallback& on_token)
      : engine_(engine), requests_(requests), on_token_(on_token) {
    report_.results.resize(requests.size());
    started_.resize(requests.size());
    first_token_.resize(requests.size());
  }

  ~Generation() {
    for (const auto& [slot, request] : running_) engine_.release(slot);
  }

  GenerateReport run() {
    while (next_ < requests_.size() || !running_.empty()) {
      admit();
      FLEXQ_FT_CHECK(!running_.empty(), "request ", next_, " fits in no slot");
      step();
    }
    return std::move(report_);
  }

 private:
  void admit() {
    for (; next_ < requests_.size(); ++next_) {
      const GenerateRequest& request = requests_[next_];
      const int64_t prompt = static_cast<int64_t>(request.prompt.size());
      if (!engine_.can_admit(prompt, request.params.max_tokens)) return;
      started_[next_] = Clock::now();
      running_[engine_.admit(request.prompt, request.params)] = next_;
      report_.prefill_tokens += prompt;
    }
  }

  void step() {
    const bool prefill = std::any_of(running_.begin(), running_.end(), [&](const auto& entry) {
      return report_.results[entry.second].tokens.empty();
    });
    const Clock::time_point before = Clock::now();
    const std::vector<StepOutput> outputs = engine_.step();
    const Clock::time_point now = Clock::now();
    (prefill ? report_.prefill_s : report_.decode_s) += seconds(before, now);
    if (!prefill) report_.decode_tokens += static_cast<int64_t>(outputs.size());
    for (const StepOutput& output : outputs) take(output, now);
  }

  void take(const StepOutput& output, Clock::time_point now) {
    const size_t request = running_.at(output.slot);
    GenerateResult& result = report_.results[request];
    if (result.tokens.empty()) {
      first_token_[request] = now;
      result.prefill_s = seconds(started_[request], now);
    }
    result.tokens.push_back(output.token);
    result.logprobs.push_back(output.logprob);
    result.finish = output.finish;
    if (output.finish != FinishReason::kNone) {
      result.decode_s = seconds(first_token_[request], now);
      running_.erase(output.slot);
      engine_.release(output.slot);
    }
    if (on_token_) on_token_(request, output);
  }

  Engine& engine_;
  const std::vector<GenerateRequest>& requests_;
  const TokenCallback& on_token_;
  GenerateReport report_;
  std::vector<Clock::time_point> started_, first_token_;
  std::map<int64_t, size_t> running_;  // slot -> request
  size_t next_ = 0;
};

}  // namespace

GenerateReport generate(Engine& engine, const std::vector<GenerateRequest>& requests,
                        const TokenCallback& on_token) {
  return Generation(engine, requests, on_token).run();
}

}  // namespace flexq_ft
