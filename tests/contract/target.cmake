# One suite for every store, and crashes of the real one. The runner's has a program of its own: it is all that the thread sanitizer wants
# of these, and needs no room above the engine.
set(contract_alone ${CMAKE_SOURCE_DIR}/tests/contract/runner_suite.cpp)
add_executable(runner_test ${contract_alone})
target_link_libraries(runner_test PRIVATE muster_options muster_engine muster_store muster_testing GTest::gtest GTest::gmock GTest::gtest_main)
target_include_directories(runner_test PRIVATE ${CMAKE_SOURCE_DIR}/tests)
muster_use_pch(runner_test FROM muster_pch_test)
add_test(NAME contract.runner COMMAND runner_test)
set_tests_properties(contract.runner PROPERTIES LABELS contract TIMEOUT 600)

set(contract_sources ${sources})
list(REMOVE_ITEM contract_sources ${contract_alone})
add_executable(contract_test ${contract_sources})
target_link_libraries(contract_test PRIVATE muster_options muster_server muster_engine muster_store muster_testing GTest::gtest GTest::gmock GTest::gtest_main)
target_include_directories(contract_test PRIVATE ${CMAKE_SOURCE_DIR}/tests)
muster_use_pch(contract_test FROM muster_pch_test)
muster_optimised_first(contract_test muster_control)
add_test(NAME contract.store COMMAND contract_test)
set_tests_properties(contract.store PROPERTIES LABELS contract TIMEOUT 600)
