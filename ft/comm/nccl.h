// The part of NCCL that we call: its C ABI as of 2.18, declared here so that nothing is needed to
// build, and opened at run time. tests/cpp/test_nccl.cc holds it against NVIDIA's nccl.h.
#pragma once

#include <cstddef>
#include <string>

namespace flexq_ft::nccl {

struct OpaqueComm;
using Comm = OpaqueComm*;

// Made by one rank, and given to all.
struct UniqueId {
  char bytes[128];
};

// In C these are enums; as arguments and results they are ints.
constexpr int kSuccess = 0;
constexpr int kInProgress = 7;
constexpr int kInt8 = 0;
constexpr int kFloat32 = 7;
constexpr int kSum = 0;

constexpr int kLeastVersion = 21800;  // 2.18.0

struct Api {
  int (*get_version)(int* version);
  int (*get_unique_id)(UniqueId* id);
  int (*comm_init_rank)(Comm* comm, int size, UniqueId id, int rank);
  int (*comm_destroy)(Comm comm);
  int (*comm_abort)(Comm comm);
  int (*comm_get_async_error)(Comm comm, int* error);
  int (*all_reduce)(const void* in, void* out, size_t count, int dtype, int op, Comm comm,
                    void* stream);
  int (*all_gather)(const void* in, void* out, size_t count, int dtype, Comm comm, void* stream);
  const char* (*get_error_string)(int status);
  const char* (*get_last_error)(Comm comm);

  std::string path;  // of the library
  int version = 0;   // 21800 is 2.18.0
};

// Opens libnccl.so.2 once. Throws Error{kDevice} if it is not found (with where it was looked for
// and the wheel that has it) or too old. Touches no GPU.
const Api& open();

// A new id; by the rank that begins.
UniqueId unique_id();

// "2.32.3"
std::string version_text(int version);

// Throws Error{kLaunch} with NCCL's own words unless status is kSuccess.
void check(int status, const char* call, int rank, int size);

}  // namespace flexq_ft::nccl
