// The C ABI between the runtime and libflexq_ft_mpi, the one library that links MPI.
//
// The library is opened at run time (mpi_library.h), so nothing else needs MPI to load. It exports
// one function, flexq_ft_mpi_api. Every call is collective unless it says otherwise, and returns 0
// or a status that error_text explains.
#pragma once

#include <cstddef>

extern "C" {

struct FlexqFtMpiWorld {
  int rank;
  int size;
  int local_rank;  // among the ranks of this host
};

struct FlexqFtMpiApi {
  // Starts MPI, or joins it when somebody (mpi4py) has started it already. Once per process.
  int (*init)(FlexqFtMpiWorld* world);

  int (*barrier)();
  int (*broadcast)(void* data, size_t bytes, int root);

  // data = x0 + x1 + …, added in rank order, in place.
  int (*all_reduce_f32)(float* data, size_t count);

  // out [size, bytes] <- in of every rank, in rank order.
  int (*all_gather_bytes)(void* out, const void* in, size_t bytes);

  // Ends every rank; mpirun returns this code. Not collective. Does not return.
  void (*abort)(int code);

  // Ends MPI if init started it.
  int (*finalize)();

  // Not collective.
  void (*error_text)(int status, char* text, size_t size);
};

constexpr int kFlexqFtMpiVersion = 1;  // of the struct above

// The table, or null if the library has another version of it.
using FlexqFtMpiApiFunction = const FlexqFtMpiApi* (*)(int version);
}
