# What everything is compiled with, in the whole project and in flexq_kernels on its own.
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
get_filename_component(FLEXQ_ROOT ${CMAKE_CURRENT_LIST_DIR} DIRECTORY)

include(${CMAKE_CURRENT_LIST_DIR}/cuda.cmake)
find_package(OpenMP COMPONENTS CXX)

# No fused contraction and no fast-math: quantised integers must be the same bits everywhere
# (docs/numerics.md); where fma is wanted, the source says so.
add_library(flexq_build_options INTERFACE)
target_compile_options(
  flexq_build_options
  INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-ffp-contract=off;-fmacro-prefix-map=${FLEXQ_ROOT}/=>
    $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Wno-unused-parameter,-Wno-parentheses;--expt-relaxed-constexpr;-lineinfo>)
if(OpenMP_CXX_FOUND)
  target_compile_options(flexq_build_options
                         INTERFACE $<$<COMPILE_LANGUAGE:CXX>:${OpenMP_CXX_FLAGS}>)
  target_link_libraries(flexq_build_options INTERFACE ${OpenMP_CXX_LIBRARIES})
endif()

include(${CMAKE_CURRENT_LIST_DIR}/embedded_tables.cmake)
include(${CMAKE_CURRENT_LIST_DIR}/isa_variants.cmake)
