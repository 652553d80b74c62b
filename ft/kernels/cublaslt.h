// The part of cuBLASLt that we call, declared here and opened at run time: neither a build nor an
// import needs the library. tests/cpp/test_cublaslt_abi.cc compares every value and size with
// cublasLt.h where that is installed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace flexq_ft::cublaslt {

// Values of cublasStatus_t, cudaDataType_t, cublasComputeType_t, cublasOperation_t.
constexpr int kSuccess = 0, kNotSupported = 15;
constexpr int kR32F = 0, kR16F = 2, kR8I = 3, kR32I = 10, kR16BF = 14;
constexpr int kCompute32F = 68, kCompute32I = 72;
constexpr int32_t kOpTranspose = 1;

// Of cublasLtMatmulDescAttributes_t.
constexpr int kDescTransA = 3;

// Of cublasLtMatmulPreferenceAttributes_t.
constexpr int kPrefMaxWorkspaceBytes = 1;  // uint64_t
constexpr int kPrefReductionMask = 3;      // uint32_t
constexpr int kPrefAlignmentA = 5, kPrefAlignmentB = 6, kPrefAlignmentC = 7, kPrefAlignmentD = 8;

// Of cublasLtReductionScheme_t. In place (1) is left out: which split adds first is not ours to
// prove.
constexpr uint32_t kReductionComputeType = 2, kReductionOutputType = 4;

// Of cublasLtMatmulAlgoConfigAttributes_t.
constexpr int kConfigId = 0, kConfigTile = 1, kConfigSplitK = 2, kConfigReduction = 3,
              kConfigSwizzle = 4, kConfigCustom = 5, kConfigStages = 6;  // 4 bytes each
constexpr int kConfigInnerShape = 7, kConfigCluster = 8;                 // uint16_t

struct Algo {  // cublasLtMatmulAlgo_t
  uint64_t data[8] = {};
};

struct Heuristic {  // cublasLtMatmulHeuristicResult_t
  Algo algo;
  size_t workspace_bytes = 0;
  int state = 0;
  float waves = 0;
  int reserved[4] = {};
};

using Handle = void*;
using Desc = void*;
using Layout = void*;
using Preference = void*;

struct Api {
  size_t (*get_version)();
  const char* (*get_status_name)(int status);
  int (*create)(Handle*);
  int (*destroy)(Handle);
  int (*desc_create)(Desc*, int compute_type, int scale_type);
  int (*desc_destroy)(Desc);
  int (*desc_set)(Desc, int attribute, const void* value, size_t bytes);
  int (*layout_create)(Layout*, int type, uint64_t rows, uint64_t cols, int64_t ld);
  int (*layout_destroy)(Layout);
  int (*preference_create)(Preference*);
  int (*preference_destroy)(Preference);
  int (*preference_set)(Preference, int attribute, const void* value, size_t bytes);
  int (*heuristic)(Handle, Desc, Layout a, Layout b, Layout c, Layout d, Preference, int requested,
                   Heuristic* results, int* returned);
  int (*algo_check)(Handle, Desc, Layout a, Layout b, Layout c, Layout d, const Algo*,
                    Heuristic* result);
  int (*algo_config_get)(const Algo*, int attribute, void* value, size_t bytes, size_t* written);
  int (*matmul)(Handle, Desc, const void* alpha, const void* a, Layout, const void* b, Layout,
                const void* beta, const void* c, Layout, void* d, Layout, const Algo*,
                void* workspace, size_t workspace_bytes, void* stream);
};

struct Library {
  Api api;
  std::string path;
  size_t version = 0;  // 130101 for 13.1.1
};

// Opens it once. Throws Error{kDevice} that says where it was looked for.
const Library& library();

std::string version_text(size_t version);  // "13.1.1"

// Throws Error{kDevice}, or kOutOfMemory, with the library's name of the status.
void check(int status, const char* call, const char* file, int line);

}  // namespace flexq_ft::cublaslt

#define FLEXQ_FT_CUBLASLT(expr) ::flexq_ft::cublaslt::check((expr), #expr, __FILE__, __LINE__)
