# One suite for every store, and crashes of the real one.
add_executable(contract_test ${sources})
target_link_libraries(contract_test PRIVATE muster_options muster_engine muster_store muster_testing GTest::gtest GTest::gmock GTest::gtest_main)
target_include_directories(contract_test PRIVATE ${CMAKE_SOURCE_DIR}/tests)
add_test(NAME contract.store COMMAND contract_test)
set_tests_properties(contract.store PROPERTIES LABELS contract TIMEOUT 600)
