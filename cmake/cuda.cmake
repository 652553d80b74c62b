# Decides whether the GPU side is built, and for which GPUs.
#   FLEXQ_FT_CUDA=AUTO  where nvcc and a GPU are present, for that GPU
#   FLEXQ_FT_CUDA=ON    nvcc must be there; for the GPU that is present, else for 80;90a
#   FLEXQ_FT_CUDA=OFF   the CPU only
# -DCMAKE_CUDA_ARCHITECTURES=80;86;89;90a overrides the choice. cuBLASLt and NCCL are opened at run
# time: nothing of them is needed here.
set(FLEXQ_FT_CUDA AUTO CACHE STRING "Build the GPU side: AUTO, ON or OFF")
set_property(CACHE FLEXQ_FT_CUDA PROPERTY STRINGS AUTO ON OFF)
if(NOT FLEXQ_FT_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "FLEXQ_FT_CUDA is ${FLEXQ_FT_CUDA}; use AUTO, ON or OFF")
endif()

set(FLEXQ_FT_HAS_CUDA OFF)
if(FLEXQ_FT_CUDA STREQUAL "OFF")
  message(STATUS "CUDA: off (FLEXQ_FT_CUDA=OFF)")
  return()
endif()

# Compute capabilities of the GPUs in this machine that the kernels know: "80;90a".
set(gpus "")
find_program(nvidia_smi nvidia-smi)
if(nvidia_smi)
  execute_process(
    COMMAND ${nvidia_smi} --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE capabilities
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  string(REGEX MATCHALL "[0-9]+\\.[0-9]+" gpus "${capabilities}")
  list(TRANSFORM gpus REPLACE "\\." "")
  list(FILTER gpus EXCLUDE REGEX "^[1-7][0-9]$")
  list(TRANSFORM gpus REPLACE "^90$" "90a")  # wgmma, setmaxnreg: Hopper's own instructions
  list(REMOVE_DUPLICATES gpus)
endif()
if(FLEXQ_FT_CUDA STREQUAL "AUTO" AND NOT gpus)
  message(STATUS "CUDA: off (no GPU of compute capability 8.0 or later here; FLEXQ_FT_CUDA=ON builds for other machines)")
  return()
endif()

include(CheckLanguage)
if(NOT CMAKE_CUDA_COMPILER)
  find_program(nvcc nvcc PATHS /usr/local/cuda/bin)
  if(nvcc)
    set(CMAKE_CUDA_COMPILER ${nvcc})
  endif()
endif()
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(FLEXQ_FT_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FLEXQ_FT_CUDA=ON, and nvcc was not found. Try: put nvcc on the PATH, or "
                        "-DCMAKE_CUDA_COMPILER=/path/to/nvcc")
  endif()
  message(STATUS "CUDA: off (a GPU is here, but no nvcc)")
  return()
endif()

if(NOT CMAKE_CUDA_ARCHITECTURES)
  if(gpus)
    set(CMAKE_CUDA_ARCHITECTURES ${gpus})
  else()
    set(CMAKE_CUDA_ARCHITECTURES 80 90a)
  endif()
endif()
foreach(architecture IN LISTS CMAKE_CUDA_ARCHITECTURES)
  if(architecture MATCHES "^[1-7][0-9](-|$)")
    message(FATAL_ERROR "CMAKE_CUDA_ARCHITECTURES is ${CMAKE_CUDA_ARCHITECTURES}; the kernels need 80 "
                        "or later. Try: -DCMAKE_CUDA_ARCHITECTURES=\"80;90a\"")
  endif()
endforeach()
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
enable_language(CUDA)
find_package(CUDAToolkit 12.4 REQUIRED)
set(FLEXQ_FT_HAS_CUDA ON)
message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER_VERSION}, for ${CMAKE_CUDA_ARCHITECTURES}")
