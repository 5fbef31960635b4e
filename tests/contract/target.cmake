# One suite for every store, and crashes of the real one.
add_executable(contract_test ${sources})
target_link_libraries(contract_test PRIVATE muster_options muster_server muster_engine muster_store muster_testing GTest::gtest GTest::gmock GTest::gtest_main)
target_include_directories(contract_test PRIVATE ${CMAKE_SOURCE_DIR}/tests)
muster_use_pch(contract_test FROM muster_pch_test)
add_test(NAME contract.store COMMAND contract_test)
set_tests_properties(contract.store PROPERTIES LABELS contract TIMEOUT 600)
set_source_files_properties(${CMAKE_SOURCE_DIR}/tests/contract/golden_journal_test.cpp PROPERTIES COMPILE_DEFINITIONS
  "MUSTER_TEST_ROOT=\"${CMAKE_SOURCE_DIR}\"")
