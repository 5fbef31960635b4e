# tests/fuzz twice. fuzz_test and fuzz_http_test play the seeds of every target, changed a little, among the unit tests.
# muster-fuzz (preset fuzz) is all of them in one program for libFuzzer, from the parsers' own sources only, so that it
# builds in a fraction of the time of the rooms. plain_*.cpp stand for what those would pull in.
function(muster_fuzz)
  file(GLOB targets CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/fuzz/*.cpp)
  list(FILTER targets EXCLUDE REGEX "/(main|fuzz_test|plain_index)\\.cpp$")
  file(GLOB all ${CMAKE_SOURCE_DIR}/tests/fuzz/*.cpp)
  set_source_files_properties(${all} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)  # each speaks the language of its room
  set_source_files_properties(${CMAKE_SOURCE_DIR}/tests/fuzz/fuzz.cpp PROPERTIES COMPILE_DEFINITIONS "MUSTER_TEST_ROOT=\"${CMAKE_SOURCE_DIR}\"")
  set(http)
  foreach(source address_block client http_connection http_text url websocket)
    list(APPEND http ${CMAKE_SOURCE_DIR}/src/net/${source}.cpp)
  endforeach()
  if(BUILD_TESTING)
    set(plain ${targets})
    list(FILTER plain EXCLUDE REGEX "/(net|plain_tls)\\.cpp$")
    muster_fuzz_test(fuzz_test SOURCES ${plain} LINK muster_host muster_relay muster_cli muster_launcher muster_journal muster_control muster_agent muster_oidc)
    set(plain ${targets})
    list(FILTER plain INCLUDE REGEX "/(fuzz|net|plain_tls)\\.cpp$")
    muster_fuzz_test(fuzz_http_test SOURCES ${plain} ${http} LINK muster_crypto fence_asio fence_openssl)
  endif()
  if(NOT MUSTER_FUZZ)
    return()
  endif()
  set(parsers ${http})
  foreach(room base crypto launcher overlay wire journal oidc)
    file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${room}/*.cpp)
    list(FILTER sources EXCLUDE REGEX "(_test|cert_watch|password|totp|openapi|audit_views|rest_views)\\.cpp$")
    list(APPEND parsers ${sources})
  endforeach()
  foreach(source model/workload_identity model/image_name model/image_policy model/node_labels model/reason model/offer model/venv_image model/validate agent/memory
          control/event_codec control/kinds control/state_codec egress/address egress/dns egress/rules
          net/recall_frame relay/client_hello relay/upgrade scan/inventory scan/inventory_text scan/osv scan/rpm scan/verdict scan/version cli/unpack cli/table
          session/frames host/egress_protocol host/engine_http host/helper_link host/image_fault host/json host/netd_protocol host/owner_network host/policy
          host/poller host/privd_verbs host/unix_socket)
    list(APPEND parsers ${CMAKE_SOURCE_DIR}/src/${source}.cpp)
  endforeach()
  add_library(muster_fuzz OBJECT EXCLUDE_FROM_ALL ${parsers} ${targets}  # compiled like the precompiled header
    ${CMAKE_SOURCE_DIR}/tests/fuzz/main.cpp ${CMAKE_SOURCE_DIR}/tests/fuzz/plain_index.cpp)
  target_include_directories(muster_fuzz PRIVATE ${CMAKE_SOURCE_DIR}/src ${CMAKE_SOURCE_DIR}/tests)
  target_link_libraries(muster_fuzz PRIVATE muster_options PUBLIC muster_proto fence_openssl fence_asio fence_yaml fence_fmt)
  muster_use_pch(muster_fuzz)
  add_executable(muster-fuzz EXCLUDE_FROM_ALL)
  target_link_libraries(muster-fuzz PRIVATE muster_fuzz)
  # Generated code is built without sanitizers; its edges lead into frames all the same.
  set_source_files_properties(${CMAKE_BINARY_DIR}/proto/muster/v1/agent.pb.cc TARGET_DIRECTORY muster_proto
    PROPERTIES COMPILE_OPTIONS "-fsanitize=fuzzer-no-link")
  target_link_options(muster-fuzz PRIVATE -fsanitize=fuzzer)
endfunction()

# muster_fuzz_test(name SOURCES ... LINK ...): a part of the targets with the main of fuzz_test.cpp.
function(muster_fuzz_test name)
  cmake_parse_arguments(FUZZ "" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${FUZZ_SOURCES} ${CMAKE_SOURCE_DIR}/tests/fuzz/fuzz_test.cpp)
  target_link_libraries(${name} PRIVATE muster_options ${FUZZ_LINK} GTest::gtest)
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR}/src ${CMAKE_SOURCE_DIR}/tests)
  muster_use_pch(${name} FROM muster_pch_test)
  add_test(NAME unit.${name} COMMAND ${name})
  set_tests_properties(unit.${name} PROPERTIES LABELS unit TIMEOUT 300)
endfunction()
