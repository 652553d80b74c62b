// The GEMM kernels of flexq_kernels behind one interface, for tests that compare them.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <variant>
#include <vector>

#include "flexq_kernels/gpu/btc_gemm.h"
#include "flexq_kernels/gpu/candidate.h"
#include "flexq_kernels/gpu/device.h"
#include "flexq_kernels/gpu/plain_gemm.h"
#include "tests/cpp/device_array.h"

namespace flexq_test {

struct Implementation {
  using Problem = flexq_kernels::GemmProblem;
  using Activations = flexq_kernels::gpu::Activations;
  using Weight = flexq_kernels::gpu::Weight;
  using Launch = flexq_kernels::gpu::Launch;

  std::string name;
  flexq_kernels::gpu::CodeOrder order;
  std::function<std::string(const Problem&, const flexq_kernels::gpu::Device&)> why_not;
  std::function<void(const flexq_kernels::gpu::Output&, const Activations&, const Weight&,
                     const Problem&, const Launch&)>
      gemm;
  std::function<void(int32_t*, const Activations&, const Weight&, const Problem&, const Launch&)>
      group_sums;
  // Parts of k whose sums are added when each is complete, which decides a row's bits.
  std::function<int(const Problem&)> parts = [](const Problem&) { return 1; };
};

inline Implementation plain_implementation() {
  namespace gpu = flexq_kernels::gpu;
  return {"plain", gpu::CodeOrder::kNatural, gpu::plain_why_not, gpu::plain_gemm,
          gpu::plain_group_sums};
}

// The planes of a problem's operands, made anew for each call. Not by dependent launches: the
// product reads its weight before it waits for the kernel in front.
struct BtcOperands {
  DeviceArray<uint32_t> weight, activations;
  flexq_kernels::gpu::BtcWeight w;
  flexq_kernels::gpu::BtcActivations x;

  BtcOperands(const Implementation::Activations& from, const Implementation::Weight& codes,
              const flexq_kernels::GemmProblem& p)
      : weight(flexq_kernels::packed_bytes(p.n, p.k) / 4),
        activations(flexq_kernels::gpu::btc_activation_bytes(p.m, p.k, p.act_bits) / 4),
        w{weight.data(), codes.scales},
        x{activations.data(), from.scales, from.scale_stride} {
    flexq_kernels::gpu::btc_pack_weight(weight.data(), codes.codes, p.n, p.k, plain_launch());
    flexq_kernels::gpu::btc_pack_activations(activations.data(), from, p.m, p.k, p.act_bits,
                                             plain_launch());
  }
};

inline Implementation btc_implementation() {
  namespace gpu = flexq_kernels::gpu;
  Implementation btc{"btc", gpu::CodeOrder::kFragment, gpu::btc_why_not, nullptr, nullptr};
  btc.gemm = [](const gpu::Output& y, const gpu::Activations& x, const gpu::Weight& w,
                const flexq_kernels::GemmProblem& problem, const gpu::Launch& launch) {
    const BtcOperands operands(x, w, problem);
    gpu::btc_gemm(y, operands.x, operands.w, problem, launch);
    synchronize("btc_gemm");
  };
  btc.group_sums = [](int32_t* sums, const gpu::Activations& x, const gpu::Weight& w,
                      const flexq_kernels::GemmProblem& problem, const gpu::Launch& launch) {
    const BtcOperands operands(x, w, problem);
    gpu::btc_group_sums(sums, operands.x, operands.w, problem, launch);
    synchronize("btc_group_sums");
  };
  return btc;
}

// A family of candidates: each problem by one of its configs, another for every size.
inline Implementation family_implementation(const std::string& name,
                                            flexq_kernels::gpu::CodeOrder order) {
  namespace gpu = flexq_kernels::gpu;
  using Problem = flexq_kernels::GemmProblem;
  const auto configs = [name](const Problem& problem, std::vector<gpu::Refusal>* refusals) {
    std::vector<gpu::Candidate> mine;
    for (const auto& one : gpu::candidates(problem, gpu::current_device(), refusals)) {
      if (gpu::family_name(one) == name) mine.push_back(one);
    }
    return mine;
  };
  const auto pick = [configs](const Problem& problem) {
    const std::vector<gpu::Candidate> mine = configs(problem, nullptr);
    return mine.at(static_cast<size_t>(problem.m + problem.n + problem.k) % mine.size());
  };
  Implementation family{name, order, nullptr, nullptr, nullptr};
  family.why_not = [name, configs](const Problem& problem, const gpu::Device&) {
    std::vector<gpu::Refusal> refusals;
    configs(problem, &refusals);
    for (const gpu::Refusal& refusal : refusals) {
      if (refusal.family == name) return refusal.reason;
    }
    return std::string();
  };
  family.gemm = [pick](const gpu::Output& y, const gpu::Activations& x, const gpu::Weight& w,
                       const Problem& problem, const gpu::Launch& launch) {
    const gpu::Candidate candidate = pick(problem);
    // Zero before its first use, and again after each.
    static const DeviceArray<uint8_t> workspace(
        std::vector<uint8_t>(std::max<size_t>(1, gpu::workspace_bytes(gpu::current_device())), 0));
    gpu::gemm_w6ax(y, x, w, problem, candidate, workspace.data(), launch);
    synchronize("gemm_w6ax");
  };
  family.group_sums = [pick](int32_t* sums, const gpu::Activations& x, const gpu::Weight& w,
                             const Problem& problem, const gpu::Launch& launch) {
    gpu::group_sums_w6ax(sums, x, w, problem, pick(problem), launch);
    synchronize("group_sums_w6ax");
  };
  family.parts = [pick](const Problem& problem) {
    const gpu::Candidate candidate = pick(problem);
    const auto* wgmma = std::get_if<gpu::WgmmaConfig>(&candidate);
    return wgmma != nullptr && wgmma->sliced ? wgmma->cluster : 1;
  };
  return family;
}

// All but plain, which the others are compared with.
inline std::vector<Implementation> implementations() {
  using flexq_kernels::gpu::CodeOrder;
  return {btc_implementation(), family_implementation("stream", CodeOrder::kFragment),
          family_implementation("wgmma", CodeOrder::kNatural),
          family_implementation("mma", CodeOrder::kNatural)};
}

}  // namespace flexq_test
