# Precompiled headers: they take a quarter off a cold build. MUSTER_PCH=OFF (the tsan preset) shows a source that forgot an include.
option(MUSTER_PCH "precompile common headers" ON)

# muster_pch: the standard library and fmt, for every room. muster_pch_test: GoogleTest on top, for every test.
function(muster_pch_targets)
  if(NOT MUSTER_PCH)
    return()
  endif()
  file(WRITE ${CMAKE_BINARY_DIR}/pch/empty.cpp "")
  add_library(muster_pch STATIC ${CMAKE_BINARY_DIR}/pch/empty.cpp)
  target_link_libraries(muster_pch PRIVATE muster_options fmt::fmt)
  target_precompile_headers(muster_pch PRIVATE ${CMAKE_SOURCE_DIR}/cmake/pch.h)
  if(BUILD_TESTING)
    file(WRITE ${CMAKE_BINARY_DIR}/pch/main.cpp "int main() {}\n")
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
