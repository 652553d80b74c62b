# flexq_isa_variants(TARGET FILE…): compiles each *_simd.cc once per instruction set and links the
# objects into TARGET. Dispatch is at run time (flexq_kernels/cpu/isa.h).
function(flexq_isa_variants target)
  set(isas portable)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    list(APPEND isas avx2 avx512)
  endif()
  # GCC's note on the ABI of 64-byte vectors: they never cross a file.
  set(quiet -Wno-psabi)
  set(flags_portable "")
  set(flags_avx2 -march=x86-64-v3)
  set(flags_avx512 -march=x86-64-v4 -mprefer-vector-width=512)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    list(APPEND flags_avx512 -Wno-uninitialized -Wno-maybe-uninitialized)  # in its own header
  endif()
  foreach(isa IN LISTS isas)
    set(objects ${target}_${isa})
    add_library(${objects} OBJECT ${ARGN})
    target_compile_definitions(${objects} PRIVATE FLEXQ_ISA=${isa})
    target_compile_options(${objects} PRIVATE ${flags_${isa}} -O3 ${quiet})
    target_link_libraries(${objects} PRIVATE flexq_build_options)
    target_include_directories(
      ${objects} PRIVATE ${FLEXQ_ROOT} ${FLEXQ_ROOT}/flexq_kernels/include)
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${objects}>)
  endforeach()
endfunction()
