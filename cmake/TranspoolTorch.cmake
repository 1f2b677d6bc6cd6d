# Finds LibTorch: a CMAKE_PREFIX_PATH that holds it, else the torch package of the active python3.
# A CUDA build of LibTorch asks for the CUDA toolkit when it is found, so the CUDA settings come first.

if(NOT Torch_DIR AND NOT CMAKE_PREFIX_PATH)
  find_package(Python3 COMPONENTS Interpreter)
  if(Python3_FOUND)
    execute_process(COMMAND ${Python3_EXECUTABLE} -c "import torch; print(torch.utils.cmake_prefix_path)"
                    OUTPUT_VARIABLE torch_prefix OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    list(APPEND CMAKE_PREFIX_PATH ${torch_prefix})
  endif()
endif()

if(NOT DEFINED ENV{TORCH_CUDA_ARCH_LIST} AND NOT TORCH_CUDA_ARCH_LIST)
  set(ENV{TORCH_CUDA_ARCH_LIST} "9.0")
endif()
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90)
endif()

find_package(Torch 2.11 QUIET)
if(NOT Torch_FOUND)
  message(FATAL_ERROR "LibTorch 2.11 or newer was not found. Run scripts/setup, or pass "
                      "-DCMAKE_PREFIX_PATH=<folder that holds share/cmake/Torch>.")
endif()

if(TRANSPOOL_CUDA)
  if(NOT TARGET torch_cuda)
    message(STATUS "This LibTorch has no CUDA: the CUDA kernels are left out")
    set(TRANSPOOL_CUDA OFF)
  else()
    enable_language(CUDA)
    set(CMAKE_CUDA_STANDARD 20)
  endif()
endif()

# LibTorch's own flags carry only its ABI and include folders; ours are set per target.
set(CMAKE_CUDA_FLAGS "")
