// FLEXQ_FT_HOST_DEVICE: before a function that kernels and the host call.
#pragma once

#ifdef __CUDACC__
#define FLEXQ_FT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FLEXQ_FT_HOST_DEVICE inline
#endif
