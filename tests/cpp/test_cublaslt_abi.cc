// Our declarations of cuBLASLt against the real header, where it is installed. To compare on a
// machine that has none: pip download nvidia-cublas, unzip it, and add its include folder.
#include "ft/kernels/cublaslt.h"
#include "tests/cpp/check.h"

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>

#include <type_traits>

namespace lt = flexq_ft::cublaslt;

static_assert(lt::kSuccess == CUBLAS_STATUS_SUCCESS);
static_assert(lt::kNotSupported == CUBLAS_STATUS_NOT_SUPPORTED);
static_assert(lt::kR32F == CUDA_R_32F && lt::kR16F == CUDA_R_16F && lt::kR16BF == CUDA_R_16BF);
static_assert(lt::kR8I == CUDA_R_8I && lt::kR32I == CUDA_R_32I);
static_assert(lt::kCompute32F == CUBLAS_COMPUTE_32F && lt::kCompute32I == CUBLAS_COMPUTE_32I);
static_assert(lt::kOpTranspose == CUBLAS_OP_T);
static_assert(lt::kDescTransA == CUBLASLT_MATMUL_DESC_TRANSA);
static_assert(lt::kPrefMaxWorkspaceBytes == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
static_assert(lt::kPrefReductionMask == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
static_assert(lt::kPrefAlignmentA == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
static_assert(lt::kPrefAlignmentB == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
static_assert(lt::kPrefAlignmentC == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
static_assert(lt::kPrefAlignmentD == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
static_assert(lt::kReductionComputeType == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
static_assert(lt::kReductionOutputType == CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE);
static_assert(lt::kConfigId == CUBLASLT_ALGO_CONFIG_ID);
static_assert(lt::kConfigTile == CUBLASLT_ALGO_CONFIG_TILE_ID);
static_assert(lt::kConfigSplitK == CUBLASLT_ALGO_CONFIG_SPLITK_NUM);
static_assert(lt::kConfigReduction == CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);
static_assert(lt::kConfigSwizzle == CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING);
static_assert(lt::kConfigCustom == CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION);
static_assert(lt::kConfigStages == CUBLASLT_ALGO_CONFIG_STAGES_ID);
static_assert(lt::kConfigInnerShape == CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID);
static_assert(lt::kConfigCluster == CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID);

// Enums travel as int.
static_assert(sizeof(cublasStatus_t) == sizeof(int) && sizeof(cudaDataType_t) == sizeof(int) &&
              sizeof(cublasComputeType_t) == sizeof(int) &&
              sizeof(cublasLtMatmulDescAttributes_t) == sizeof(int) &&
              sizeof(cublasLtMatmulPreferenceAttributes_t) == sizeof(int) &&
              sizeof(cublasLtMatmulAlgoConfigAttributes_t) == sizeof(int));

using Result = cublasLtMatmulHeuristicResult_t;
static_assert(sizeof(lt::Algo) == sizeof(cublasLtMatmulAlgo_t));
static_assert(sizeof(lt::Heuristic) == sizeof(Result));
static_assert(offsetof(lt::Heuristic, workspace_bytes) == offsetof(Result, workspaceSize));
static_assert(offsetof(lt::Heuristic, state) == offsetof(Result, state));
static_assert(offsetof(lt::Heuristic, waves) == offsetof(Result, wavesCount));

// How an argument of the library and one of ours travel: pointers alike, enums and ints alike.
template <typename T>
constexpr int kPassed = std::is_pointer_v<T> ? 1
                        : std::is_void_v<T>  ? 2
                                             : 16 + 2 * static_cast<int>(sizeof(T)) +
                                                   (std::is_floating_point_v<T> ? 1 : 0);
template <typename T>
constexpr int kPassed<T[]> = 1;

template <typename Theirs, typename Ours>
struct SameCall : std::false_type {};
template <typename R1, typename... A1, typename R2, typename... A2>
struct SameCall<R1 (*)(A1...), R2 (*)(A2...)> {
  static constexpr bool arguments() {
    if constexpr (sizeof...(A1) != sizeof...(A2)) {
      return false;
    } else {
      return ((kPassed<A1> == kPassed<A2>) && ...);
    }
  }
  static constexpr bool value = arguments() && kPassed<R1> == kPassed<R2>;
};

#define SAME_CALL(theirs, ours) \
  static_assert(SameCall<decltype(&theirs), decltype(lt::Api::ours)>::value, #theirs)
SAME_CALL(cublasLtGetVersion, get_version);
SAME_CALL(cublasLtGetStatusName, get_status_name);
SAME_CALL(cublasLtCreate, create);
SAME_CALL(cublasLtDestroy, destroy);
SAME_CALL(cublasLtMatmulDescCreate, desc_create);
SAME_CALL(cublasLtMatmulDescDestroy, desc_destroy);
SAME_CALL(cublasLtMatmulDescSetAttribute, desc_set);
SAME_CALL(cublasLtMatrixLayoutCreate, layout_create);
SAME_CALL(cublasLtMatrixLayoutDestroy, layout_destroy);
SAME_CALL(cublasLtMatmulPreferenceCreate, preference_create);
SAME_CALL(cublasLtMatmulPreferenceDestroy, preference_destroy);
SAME_CALL(cublasLtMatmulPreferenceSetAttribute, preference_set);
SAME_CALL(cublasLtMatmulAlgoGetHeuristic, heuristic);
SAME_CALL(cublasLtMatmulAlgoCheck, algo_check);
SAME_CALL(cublasLtMatmulAlgoConfigGetAttribute, algo_config_get);
SAME_CALL(cublasLtMatmul, matmul);
#endif

TEST(version_is_read_as_the_library_counts) {
  EXPECT_EQ(flexq_ft::cublaslt::version_text(130101), "13.1.1");
  EXPECT_EQ(flexq_ft::cublaslt::version_text(120901), "12.9.1");
}
