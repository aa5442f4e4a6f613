// What a fuzz target defines. See CMakeLists.txt for the programs made of it.
#ifndef EMBERGATE_TESTS_FUZZ_FUZZ_TARGET_H_
#define EMBERGATE_TESTS_FUZZ_FUZZ_TARGET_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// Runs the code under test on one input. Returns 0; a wrong result calls std::abort.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

// Valid inputs, small ones, that between them reach every part of the format. Mutations start from these.
std::vector<std::string> FuzzSeeds();

#endif  // EMBERGATE_TESTS_FUZZ_FUZZ_TARGET_H_
