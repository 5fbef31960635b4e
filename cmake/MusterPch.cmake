# Precompiled headers: they take a quarter off a cold build. MUSTER_PCH=OFF shows a source that forgot an include.
option(MUSTER_PCH "precompile common headers" ON)

# Rooms whose tests calculate for minutes are optimised a little in test builds too; not for the thread sanitizer, which runs none of these.
# It doubles or triples what such a room costs to compile, so it is for rooms whose tests win more than that.
set(MUSTER_BUSY_ROOMS scheduler control overlay)
if(CMAKE_BUILD_TYPE STREQUAL "Debug" AND NOT MUSTER_SANITIZE STREQUAL "thread")
  set(MUSTER_OPTIMISE ON)
endif()
function(muster_optimise target)
  if(MUSTER_OPTIMISE)
    target_compile_options(${target} PRIVATE -O1)
  endif()
endfunction()

# muster_optimise_sources(source...): the same for single sources of rooms that are not; each for itself, without the common header.
function(muster_optimise_sources)
  if(MUSTER_OPTIMISE)
    set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS -O1 SKIP_PRECOMPILE_HEADERS ON SKIP_UNITY_BUILD_INCLUSION ON)
  endif()
endfunction()

# muster_optimised_first(program library...): what of the standard library's templates both a busy room and the rest of a program compile is
# taken from who is linked first. Let that be the room: its tests need not be optimised themselves then, and are a fifth slower, not twice.
function(muster_optimised_first program)
  if(MUSTER_OPTIMISE)
    target_link_options(${program} PRIVATE LINKER:--whole-archive)
    foreach(library ${ARGN})
      target_link_options(${program} PRIVATE $<TARGET_FILE:${library}>)
    endforeach()
    target_link_options(${program} PRIVATE LINKER:--no-whole-archive)
  endif()
endfunction()

# muster_pch: the standard library and fmt, for every room. muster_pch_test: GoogleTest on top, for every test. Each serves one -O, so the busy
# rooms have one of their own.
set(MUSTER_PCHS muster_pch)
set(MUSTER_BUSY_PCH muster_pch)
if(MUSTER_OPTIMISE)
  set(MUSTER_PCHS muster_pch muster_pch_busy)
  set(MUSTER_BUSY_PCH muster_pch_busy)
endif()
function(muster_pch_targets)
  if(NOT MUSTER_PCH)
    return()
  endif()
  file(WRITE ${CMAKE_BINARY_DIR}/pch/empty.cpp "")
  file(WRITE ${CMAKE_BINARY_DIR}/pch/main.cpp "int main() {}\n")
  foreach(pch ${MUSTER_PCHS})
    add_library(${pch} STATIC ${CMAKE_BINARY_DIR}/pch/empty.cpp)
    target_link_libraries(${pch} PRIVATE muster_options fmt::fmt)
    target_precompile_headers(${pch} PRIVATE ${CMAKE_SOURCE_DIR}/cmake/pch.h)
  endforeach()
  if(MUSTER_OPTIMISE)
    muster_optimise(muster_pch_busy)
  endif()
  if(BUILD_TESTING)
    add_executable(muster_pch_test ${CMAKE_BINARY_DIR}/pch/main.cpp)  # a program: tests are compiled as parts of programs
    target_link_libraries(muster_pch_test PRIVATE muster_options fmt::fmt GTest::gtest GTest::gmock)
    target_precompile_headers(muster_pch_test PRIVATE ${CMAKE_SOURCE_DIR}/cmake/pch.h <gtest/gtest.h> <gmock/gmock.h>)
  endif()
endfunction()

# muster_use_pch(target [FROM muster_pch_test] [ALSO <header>...]): reuse the common one, or one's own with more in it.
function(muster_use_pch target)
  cmake_parse_arguments(PCH "" "FROM" "ALSO" ${ARGN})
  if(NOT MUSTER_PCH)
    return()
  endif()
  if(PCH_ALSO)
    target_precompile_headers(${target} PRIVATE ${CMAKE_SOURCE_DIR}/cmake/pch.h ${PCH_ALSO})
  elseif(PCH_FROM)
    target_precompile_headers(${target} REUSE_FROM ${PCH_FROM})
  else()
    target_precompile_headers(${target} REUSE_FROM muster_pch)
  endif()
endfunction()
