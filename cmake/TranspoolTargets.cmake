# transpool_library(NAME DEPENDS...): a shared library of every .cpp (and, with CUDA, .cu) below the current folder.
# Shared, so that files which only register a variant are kept, and so that a plug-in finds the same registry.
# transpool_settings(TARGET): warnings, sanitizers and the shared precompiled header.

function(transpool_settings target)
  target_include_directories(${target} PUBLIC ${CMAKE_SOURCE_DIR})
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wnon-virtual-dtor>)
  if(TRANSPOOL_WERROR)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
  endif()
  if(TRANSPOOL_SANITIZE)
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${TRANSPOOL_SANITIZE} -fno-sanitize-recover=undefined -fno-omit-frame-pointer>)
    target_link_options(${target} PRIVATE -fsanitize=${TRANSPOOL_SANITIZE})
  endif()
  if(TRANSPOOL_CUDA)
    target_compile_definitions(${target} PRIVATE TRANSPOOL_CUDA)
  endif()
  target_link_libraries(${target} PUBLIC ${TORCH_LIBRARIES} fmt::fmt-header-only nlohmann_json::nlohmann_json)
  set_target_properties(${target} PROPERTIES
    BUILD_RPATH_USE_ORIGIN OFF
    INSTALL_RPATH "$ORIGIN:$ORIGIN/../lib")
  if(NOT target STREQUAL transpool_operators)
    target_precompile_headers(${target} REUSE_FROM transpool_operators)
  endif()
endfunction()

function(transpool_library target)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cpp)
  list(FILTER sources EXCLUDE REGEX "/cli/|/benchmark/")
  if(TRANSPOOL_CUDA)
    file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cu)
  endif()
  add_library(${target} SHARED ${sources} ${cuda_sources})
  transpool_settings(${target})
  target_link_libraries(${target} PUBLIC ${ARGN})
endfunction()
