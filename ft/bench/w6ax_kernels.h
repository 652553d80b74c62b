// Our kernels of a problem as bench gemm measures them: every config that takes it.
#pragma once

#include <string>
#include <vector>

#include "flexq_kernels/gpu/btc_gemm.h"
#include "flexq_kernels/gpu/candidate.h"
#include "flexq_kernels/gpu/weight_only_gemm.h"
#include "ft/bench/w6ax_contender.h"
#include "ft/bench/w6ax_operands.h"

namespace flexq_ft {

class W6axKernels {
 public:
  explicit W6axKernels(Operands& operands) : operands_(operands), into_(&operands.y()) {}

  // Where the contenders write from now on.
  void write_to(Buffer& y) { into_ = &y; }

  // Those of one implementation; why there are none is added to `refused`.
  std::vector<Contender> contenders(const std::string& name, std::vector<std::string>& refused) {
    if (name == "btc") return btc(refused);
    if (name == "weight-only") return weight_only(refused);
    std::vector<fg::Refusal> refusals;
    std::vector<Contender> out;
    for (const fg::Candidate& candidate :
         fg::candidates(operands_.problem(), fg::current_device(), &refusals)) {
      if (fg::family_name(candidate) == name) out.push_back(of_candidate(candidate));
    }
    for (const fg::Refusal& refusal : refusals) {
      if (refusal.family == name) refused.push_back(name + ": " + refusal.reason);
    }
    return out;
  }

 private:
  Contender of_candidate(const fg::Candidate& candidate) {
    Contender one;
    one.implementation = fg::family_name(candidate);
    one.config = fg::config_text(candidate);
    one.reference = &operands_.reference();
    const fg::CodeOrder order = fg::code_order(candidate);
    one.write_x = [this, order](Stream stream) { operands_.quantize(order, stream); };
    one.launch = [this, order, candidate](int rotation, bool rounded, Stream stream, bool early) {
      fg::gemm_w6ax(output(rounded), operands_.activations(order).view(),
                    operands_.weight(rotation), operands_.problem(), candidate,
                    operands_.workspace(), {stream.handle, early});
    };
    return one;
  }

  std::vector<Contender> btc(std::vector<std::string>& refused) {
    const std::string reason = fg::btc_why_not(operands_.problem(), fg::current_device());
    if (!reason.empty()) {
      refused.push_back("btc: " + reason);
      return {};
    }
    Contender one;
    one.implementation = "btc";
    one.reference = &operands_.reference();
    one.write_x = [this](Stream stream) { operands_.btc_activations(stream); };
    one.launch = [this](int rotation, bool rounded, Stream stream, bool early) {
      fg::btc_gemm(output(rounded), operands_.btc_activations(), operands_.btc_weight(rotation),
                   operands_.problem(), {stream.handle, early});
    };
    return {one};
  }

  // The same weights, and the activations as they were before they were quantised.
  std::vector<Contender> weight_only(std::vector<std::string>& refused) {
    fk::GemmProblem problem = operands_.problem();
    problem.act_bits = 16;
    std::string reason = fg::weight_only_why_not(problem, fg::current_device());
    if (reason.empty() && !operands_.float_reference().data()) {
      reason = "cuBLASLt has no product of these sizes to check it with";
    }
    if (!reason.empty()) {
      refused.push_back("weight-only: " + reason);
      return {};
    }
    std::vector<Contender> out;
    for (const fg::WeightOnlyConfig& config :
         fg::weight_only_configs(problem, fg::current_device())) {
      Contender one;
      one.implementation = "weight-only";
      one.config = detail::join(config);
      one.reference = &operands_.float_reference();
      one.write_x = [this](Stream stream) { operands_.write_x(stream); };
      one.launch = [this, problem, config](int rotation, bool rounded, Stream stream, bool early) {
        fg::weight_only_gemm(output(rounded), {operands_.x().raw(), fk::FloatType::kFp16},
                             operands_.weight(rotation), problem, config, {stream.handle, early});
      };
      out.push_back(std::move(one));
    }
    return out;
  }

  fg::Output output(bool rounded) const {
    fg::Output y;
    y.values = into_->data();
    y.type = rounded ? fk::FloatType::kFp16 : fk::FloatType::kFp32;
    return y;
  }

  Operands& operands_;
  Buffer* into_;
};

}  // namespace flexq_ft
