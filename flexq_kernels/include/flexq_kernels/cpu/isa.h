// Which build of the vectorised CPU sources runs: portable, AVX2 or AVX-512.
//
// A file named *_simd.cc is compiled once per ISA (cmake/isa_variants.cmake) with FLEXQ_ISA set to
// the name of the namespace that its functions go to. Such a file must not emit anything with
// external inline linkage (std containers, inline functions that are not always_inline): the
// linker keeps one copy of those, perhaps the AVX-512 one, and a lesser CPU would run it.
#pragma once

#include <vector>

namespace flexq_kernels {

enum class Isa { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

const char* to_string(Isa isa);  // "portable", "avx2", "avx512"

// Those that were compiled in and that this CPU can run, slowest first.
std::vector<Isa> available_isas();

// The best one available, unless set_isa chose another. set_isa returns false if it cannot run; an
// op must not be running, for it may have packed its operands for the old one.
Isa active_isa();
bool set_isa(Isa isa);

}  // namespace flexq_kernels

// Declares one function in each ISA's namespace: FLEXQ_ISA_DECLARE(void f(float* out, int n)).
#if defined(__x86_64__)
#define FLEXQ_ISA_DECLARE(...) \
  namespace portable {         \
  __VA_ARGS__;                 \
  }                            \
  namespace avx2 {             \
  __VA_ARGS__;                 \
  }                            \
  namespace avx512 {           \
  __VA_ARGS__;                 \
  }
// The function of the active ISA, to be called: FLEXQ_ISA_PICK(f)(out, n).
#define FLEXQ_ISA_PICK(f)                                                     \
  (::flexq_kernels::active_isa() == ::flexq_kernels::Isa::kAvx512 ? avx512::f \
   : ::flexq_kernels::active_isa() == ::flexq_kernels::Isa::kAvx2 ? avx2::f   \
                                                                  : portable::f)
#else
#define FLEXQ_ISA_DECLARE(...) \
  namespace portable {         \
  __VA_ARGS__;                 \
  }
#define FLEXQ_ISA_PICK(f) (portable::f)
#endif
