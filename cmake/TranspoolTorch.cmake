# Finds LibTorch: a CMAKE_PREFIX_PATH that holds it, else the torch package of the active python3.
# A CUDA build of LibTorch asks for the CUDA toolkit when it is found, even where no kernel of ours is wanted, so the
# toolkit comes first: the one named by CMAKE_CUDA_COMPILER or CUDACXX, else the one that scripts/setup left in .venv/cuda.
#
# Afterwards TRANSPOOL_CUDA is ON or OFF (AUTO is decided here), and CMAKE_CUDA_ARCHITECTURES holds for our own kernels.

find_package(Python3 COMPONENTS Interpreter)
if(NOT Torch_DIR AND NOT CMAKE_PREFIX_PATH AND Python3_FOUND)
  execute_process(
    COMMAND ${Python3_EXECUTABLE} -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
    OUTPUT_VARIABLE torch_folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(torch_folder)
    list(APPEND CMAKE_PREFIX_PATH ${torch_folder})
  endif()
endif()

set(toolkit ${CMAKE_SOURCE_DIR}/.venv/cuda)
if(NOT DEFINED CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX} AND EXISTS ${toolkit}/bin/nvcc)
  set(CMAKE_CUDA_COMPILER ${toolkit}/bin/nvcc)
  set(CUDAToolkit_ROOT ${toolkit})
  set(CUDA_TOOLKIT_ROOT_DIR ${toolkit} CACHE PATH "The CUDA toolkit that LibTorch's own search uses")
endif()

# The architectures of our kernels; a machine with a GPU builds for its own. LibTorch reads a variable of its own and
# unsets ours, hence the copy.
if(NOT TRANSPOOL_CUDA_ARCHITECTURES)
  set(architectures 90)
  find_program(NVIDIA_SMI nvidia-smi)
  if(NVIDIA_SMI)
    execute_process(COMMAND ${NVIDIA_SMI} --query-gpu=compute_cap --format=csv,noheader
                    OUTPUT_VARIABLE capabilities OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
    string(REGEX MATCHALL "[0-9]+\\.[0-9]+" capabilities "${capabilities}")
    if(NOT failed AND capabilities)
      list(REMOVE_DUPLICATES capabilities)
      string(REPLACE "." "" architectures "${capabilities}")
    endif()
  endif()
  set(TRANSPOOL_CUDA_ARCHITECTURES "${architectures}" CACHE STRING "CUDA architectures of our kernels, for example 80;90")
endif()
if(NOT DEFINED ENV{TORCH_CUDA_ARCH_LIST} AND NOT TORCH_CUDA_ARCH_LIST)
  set(TORCH_CUDA_ARCH_LIST 9.0)
endif()

find_package(Torch 2.11 QUIET)
if(NOT Torch_FOUND)
  message(FATAL_ERROR "LibTorch 2.11 or newer was not found. Run scripts/setup, or pass "
                      "-DCMAKE_PREFIX_PATH=<folder that holds share/cmake/Torch>.")
endif()

string(TOUPPER "${TRANSPOOL_CUDA}" wanted_cuda)
if(wanted_cuda STREQUAL "AUTO")
  set(TRANSPOOL_CUDA OFF)
  if(TARGET torch_cuda)
    set(TRANSPOOL_CUDA ON)
  else()
    message(STATUS "This LibTorch has no CUDA: the CUDA kernels are left out")
  endif()
elseif(TRANSPOOL_CUDA AND NOT TARGET torch_cuda)
  message(FATAL_ERROR "TRANSPOOL_CUDA is ON, but this LibTorch (${TORCH_INSTALL_PREFIX}) has no CUDA. "
                      "Use a CUDA build of LibTorch, or -DTRANSPOOL_CUDA=OFF.")
endif()
if(TRANSPOOL_CUDA)
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_ARCHITECTURES ${TRANSPOOL_CUDA_ARCHITECTURES})
  message(STATUS "CUDA kernels for the architectures ${CMAKE_CUDA_ARCHITECTURES}, nvcc ${CMAKE_CUDA_COMPILER_VERSION}")
else()
  message(STATUS "No CUDA kernels")
endif()

# Folders of an MKL that is not there would end up in every run path.
if(TARGET caffe2::mkl)
  set_property(TARGET caffe2::mkl PROPERTY INTERFACE_LINK_DIRECTORIES "")
endif()

# LibTorch's own flags carry only its ABI and include folders; ours are set per target.
set(CMAKE_CUDA_FLAGS "")
