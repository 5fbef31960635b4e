# Compilers, warnings, sanitizers, third-party fences.
find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros ${CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${CCACHE})
endif()

add_library(muster_options INTERFACE)
target_compile_options(muster_options INTERFACE -Wall -Wextra -Wpedantic -Werror -Wno-missing-field-initializers
  # g++ 12 reports these falsely on std::vector and std::string once it optimises (GCC bugs 105329, 107852).
  $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict -Wno-maybe-uninitialized -Wno-array-bounds -Wno-stringop-overflow -Wno-stringop-overread>)
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG")
target_include_directories(muster_options INTERFACE ${CMAKE_SOURCE_DIR}/src)
if(CMAKE_UNITY_BUILD)
  # Sources are joined by inclusion, and for g++ an anonymous namespace in what is included is one of a header.
  target_compile_options(muster_options INTERFACE $<$<CXX_COMPILER_ID:GNU>:-Wno-subobject-linkage>)
endif()
if(CMAKE_BUILD_TYPE STREQUAL "Debug")
  target_compile_options(muster_options INTERFACE -g1)
endif()
if(MUSTER_MUTANTS)
  target_compile_definitions(muster_options INTERFACE MUSTER_MUTANTS=1)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  add_link_options(-fuse-ld=lld-16)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-Xclang> $<$<COMPILE_LANGUAGE:CXX>:-fno-pch-timestamp>)  # lets ccache keep precompiled headers
endif()
if(MUSTER_SANITIZE)
  add_compile_options(-fsanitize=${MUSTER_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${MUSTER_SANITIZE})
endif()
# One check of -fsanitize=undefined writes the type of every function beside it, which doubles the objects; nothing here calls through a pointer
# of another type. Five more make a third of what is compiled. Rooms that read foreign bytes keep those; elsewhere a null pointer is caught by
# the address sanitizer all the same, and the others guard against casts, which are few there, and against addresses that wrap around.
if(MUSTER_SANITIZE MATCHES "undefined" AND NOT MUSTER_FUZZ)
  add_compile_options(-fno-sanitize=function)
endif()
set(MUSTER_FULL_CHECKS base crypto wire overlay relay session journal store net egress oidc acme scan launcher host cli)
function(muster_trim_checks target room)
  if(MUSTER_SANITIZE MATCHES "undefined" AND NOT MUSTER_FUZZ AND NOT room IN_LIST MUSTER_FULL_CHECKS)
    target_compile_options(${target} PRIVATE -fno-sanitize=null,alignment,object-size,vptr,pointer-overflow)
  endif()
endfunction()
if(MUSTER_FUZZ)  # counts edges and compares for libFuzzer
  add_compile_options(-O1 -g1 -fsanitize=fuzzer-no-link)
endif()
if(CMAKE_BUILD_TYPE STREQUAL "Release")
  add_compile_options(-ffunction-sections -fdata-sections)
  add_link_options(-Wl,--gc-sections)
endif()

find_package(Threads REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(Protobuf REQUIRED)
find_package(SQLite3 REQUIRED)
find_package(yaml-cpp REQUIRED)
find_package(fmt REQUIRED)
find_package(Boost 1.81 REQUIRED)
find_package(GTest REQUIRED)
# Its assertions are an if with an else: g++ warns where one stands alone under an if.
set_property(TARGET GTest::gtest APPEND PROPERTY INTERFACE_COMPILE_OPTIONS $<$<CXX_COMPILER_ID:GNU>:-Wno-dangling-else>)

# One interface library per fence named in src/deps.txt.
function(muster_fence name)
  add_library(fence_${name} INTERFACE)
  target_link_libraries(fence_${name} INTERFACE ${ARGN})
endfunction()
muster_fence(openssl OpenSSL::SSL OpenSSL::Crypto)
# Linked in where it is used, so that no program needs the library at run time.
find_library(MUSTER_ARGON2 NAMES libargon2.a argon2 REQUIRED)
muster_fence(argon ${MUSTER_ARGON2} Threads::Threads)
muster_fence(asio Boost::headers Threads::Threads OpenSSL::SSL)
target_compile_definitions(fence_asio INTERFACE BOOST_ASIO_NO_DEPRECATED BOOST_ASIO_DISABLE_BOOST_COROUTINE)
muster_fence(protobuf muster_proto)
muster_fence(sqlite SQLite::SQLite3)
muster_fence(yaml yaml-cpp)
muster_fence(cli11)
muster_fence(fmt fmt::fmt)
muster_fence(seccomp seccomp)
muster_fence(dl ${CMAKE_DL_LIBS})
muster_fence(json)
# Small, and linked in as argon is: what asks a home's router to let members in (NAT-PMP, UPnP).
find_library(MUSTER_NATPMP NAMES libnatpmp.a natpmp REQUIRED)
find_library(MUSTER_MINIUPNPC NAMES libminiupnpc.a miniupnpc REQUIRED)
muster_fence(portmap ${MUSTER_NATPMP} ${MUSTER_MINIUPNPC})

# The contract: generated code is not ours, so it is compiled without our warnings.
file(GLOB MUSTER_PROTOS CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/proto/muster/v1/*.proto)
add_library(muster_proto STATIC)
set_target_properties(muster_proto PROPERTIES UNITY_BUILD OFF)
foreach(proto ${MUSTER_PROTOS})
  get_filename_component(stem ${proto} NAME_WE)
  set(out ${CMAKE_BINARY_DIR}/proto/muster/v1/${stem}.pb)
  add_custom_command(OUTPUT ${out}.cc ${out}.h
    COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/proto
    COMMAND protobuf::protoc --cpp_out=${CMAKE_BINARY_DIR}/proto -I ${CMAKE_SOURCE_DIR}/proto ${proto}
    DEPENDS ${MUSTER_PROTOS} VERBATIM)
  target_sources(muster_proto PRIVATE ${out}.cc)
endforeach()
target_include_directories(muster_proto SYSTEM PUBLIC ${CMAKE_BINARY_DIR}/proto)
target_link_libraries(muster_proto PUBLIC protobuf::libprotobuf)
if(MUSTER_SANITIZE)  # it would take longest of all
  target_compile_options(muster_proto PRIVATE -fno-sanitize=all -g0)
endif()
target_compile_options(muster_proto PRIVATE $<$<CONFIG:Release>:-O1>)  # a third less to compile
