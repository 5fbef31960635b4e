# muster-fuzz: every fuzz target of tests/fuzz in one program for libFuzzer (preset fuzz), from the parsers' own sources only,
# so that it builds in a fraction of the time of the rooms. tests/fuzz/plain_tls.cpp stands for the TLS of room net.
function(muster_fuzz)
  if(NOT MUSTER_FUZZ)
    return()
  endif()
  set(parsers)
  foreach(room base crypto launcher overlay wire journal)
    file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${room}/*.cpp)
    list(FILTER sources EXCLUDE REGEX "(_test|cert_watch|password|openapi)\\.cpp$")
    list(APPEND parsers ${sources})
  endforeach()
  foreach(source model/image_name model/reason model/venv_image model/validate agent/memory
          control/event_codec control/state_codec
          egress/address egress/dns egress/rules
          net/address_block net/client net/http_connection net/http_text net/url net/websocket
          relay/client_hello cli/unpack cli/table
          host/egress_protocol host/engine_http host/helper_link host/image_fault host/json host/netd_protocol host/policy
          host/poller host/privd_verbs host/unix_socket)
    list(APPEND parsers ${CMAKE_SOURCE_DIR}/src/${source}.cpp)
  endforeach()
  file(GLOB targets CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/fuzz/*.cpp)
  set_source_files_properties(${targets} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)  # each speaks the language of its room
  add_library(muster_fuzz OBJECT EXCLUDE_FROM_ALL ${parsers} ${targets})  # compiled like the precompiled header
  target_include_directories(muster_fuzz PRIVATE ${CMAKE_SOURCE_DIR}/src ${CMAKE_SOURCE_DIR}/tests)
  target_link_libraries(muster_fuzz PRIVATE muster_options PUBLIC muster_proto fence_openssl fence_asio fence_yaml fence_fmt)
  muster_use_pch(muster_fuzz)
  add_executable(muster-fuzz EXCLUDE_FROM_ALL)
  target_link_libraries(muster-fuzz PRIVATE muster_fuzz)
  # Generated code is not what is looked for, and slow to build under sanitizers; its edges lead into frames all the same.
  target_compile_options(muster_proto PRIVATE -fno-sanitize=all -g0)
  set_source_files_properties(${CMAKE_BINARY_DIR}/proto/muster/v1/agent.pb.cc TARGET_DIRECTORY muster_proto
    PROPERTIES COMPILE_OPTIONS "-fsanitize=fuzzer-no-link")
  target_link_options(muster-fuzz PRIVATE -fsanitize=fuzzer)
endfunction()
