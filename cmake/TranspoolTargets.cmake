# transpool_library(NAME DEPENDS...): a shared library of every .cpp (and, with CUDA, .cu) below the current folder.
# Shared, so that files which only register a variant are kept, and so that a plug-in finds the same registry.
# transpool_settings(TARGET): warnings, sanitizers and the shared precompiled header.
# transpool_without_tensors(TARGET REGEX...): the sources of the target that match need nothing of LibTorch. Compiled without
# the precompiled header, which takes longer to load than most of them take to compile.

# Some linkers drop a shared library that no symbol is taken from, and with it the variants that it registers. A library
# linked as $<LINK_LIBRARY:keep,NAME> stays.
set(CMAKE_LINK_LIBRARY_USING_keep_SUPPORTED TRUE)
set(CMAKE_LINK_LIBRARY_USING_keep "LINKER:--push-state,--no-as-needed" "<LINK_ITEM>" "LINKER:--pop-state")

function(transpool_settings target)
  target_include_directories(${target} PUBLIC ${CMAKE_SOURCE_DIR})
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wnon-virtual-dtor -Wno-missing-field-initializers
    -fopenmp-simd>)
  # What GCC's optimizer guesses about inlined library code is no error, and of GCC 12's guesses about std::string
  # (GCC bug 105651) nothing is said at all.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    foreach(guess restrict stringop-overflow stringop-overread array-bounds maybe-uninitialized free-nonheap-object)
      target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wno-error=${guess}>)
    endforeach()
    if(CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
      target_compile_options(${target} PRIVATE
        $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict -Wno-stringop-overflow -Wno-array-bounds>)
    endif()
  endif()
  # Messages and debug information name files as they lie in the tree, not as they lie on the machine that built it.
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-ffile-prefix-map=${CMAKE_SOURCE_DIR}/=>
    $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-ffile-prefix-map=${CMAKE_SOURCE_DIR}/=>)
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
  # libtorch.so exports a std::filesystem of its own whose remove_all calls nothing: the compiler's must be found first.
  target_link_libraries(${target} PUBLIC $<LINK_LIBRARY:keep,stdc++> ${TORCH_LIBRARIES} fmt::fmt-header-only nlohmann_json::nlohmann_json)
  set_target_properties(${target} PROPERTIES
    DEFINE_SYMBOL ""  # one precompiled header for all targets: they must not differ in a macro
    BUILD_RPATH_USE_ORIGIN OFF
    INSTALL_RPATH "$ORIGIN:$ORIGIN/../lib")
  # A precompiled header fits only what is compiled as position-independently as it was: programs like libraries.
  get_target_property(type ${target} TYPE)
  if(type STREQUAL "EXECUTABLE")
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(${target} PRIVATE -fPIC)
  endif()
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
  foreach(dependency ${ARGN})
    target_link_libraries(${target} PUBLIC $<LINK_LIBRARY:keep,${dependency}>)
  endforeach()
endfunction()

function(transpool_without_tensors target)
  transpool_matching_sources(${target} ${ARGN})
  set_source_files_properties(${matching} PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
endfunction()

# transpool_quick_to_build(TARGET REGEX...): the sources that match run too seldom to be worth the optimiser's time.
function(transpool_quick_to_build target)
  transpool_matching_sources(${target} ${ARGN})
  set_property(SOURCE ${matching} APPEND PROPERTY COMPILE_OPTIONS -O1)
endfunction()

# Sets `matching` to the target's sources that match any of the expressions.
function(transpool_matching_sources target)
  get_target_property(sources ${target} SOURCES)
  set(all "")
  foreach(regex ${ARGN})
    set(these ${sources})
    list(FILTER these INCLUDE REGEX "${regex}")
    list(APPEND all ${these})
  endforeach()
  set(matching ${all} PARENT_SCOPE)
endfunction()
