// The families of GEMMs of many tokens, under one name each.
#pragma once

#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "flexq_kernels/gpu/mma_gemm.h"
#include "flexq_kernels/gpu/wgmma_gemm.h"
#include "tests/cpp/prefill_operands.h"

namespace flexq_test {

using flexq_kernels::GemmProblem;

template <typename Config>
struct Family {
  const char* name;
  std::string (*why_not)(const GemmProblem&, const gpu::Device&);
  std::vector<Config> (*configs)(const GemmProblem&, const gpu::Device&);
  void (*gemm)(const gpu::Output&, const gpu::Activations&, const gpu::Weight&, const GemmProblem&,
               const Config&, const gpu::Launch&);
  void (*group_sums)(int32_t*, const gpu::Activations&, const gpu::Weight&, const GemmProblem&,
                     const Config&, const gpu::Launch&);
};

inline void wgmma_gemm(const gpu::Output& y, const gpu::Activations& x, const gpu::Weight& w,
                       const GemmProblem& problem, const gpu::WgmmaConfig& config,
                       const gpu::Launch& how) {
  static Memory* const workspace = [] {
    const std::vector<uint8_t> zeros(gpu::wgmma_workspace_bytes(gpu::current_device()));
    return new Memory(zeros);
  }();
  gpu::wgmma_gemm(y, x, w, problem, config, workspace->at(), how);
}

constexpr Family<gpu::WgmmaConfig> kWgmma = {"wgmma", gpu::wgmma_why_not, gpu::wgmma_configs,
                                             wgmma_gemm, gpu::wgmma_group_sums};

constexpr Family<gpu::MmaConfig> kMma = {"mma", gpu::mma_why_not, gpu::mma_configs, gpu::mma_gemm,
                                         gpu::mma_group_sums};

template <typename Config>
std::string name_of(const Family<Config>& family, const Config& config) {
  std::ostringstream out;
  out << family.name << " " << config;
  return out.str();
}

// Of K, whose sums are added.
inline int slices_of(const gpu::WgmmaConfig& config) { return config.sliced ? config.cluster : 1; }
inline int slices_of(const gpu::MmaConfig&) { return 1; }

template <typename Config>
std::string label(const char* what, const Family<Config>& family, const GemmProblem& p,
                  const Config& c) {
  std::ostringstream out;
  out << what << " " << name_of(family, c) << " of " << p;
  return out.str();
}

}  // namespace flexq_test
