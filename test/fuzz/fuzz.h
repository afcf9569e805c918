/* Everything that reads what others wrote, as functions of bytes. A target returns on any bytes; it aborts where what
 * was read breaks a promise. libFuzzer calls one of them (fuzzer.cpp), test_fuzz_corpus all, on what libFuzzer found.
 * */
#ifndef LOOM_TEST_FUZZ_H
#define LOOM_TEST_FUZZ_H

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace fuzz {

struct Target {
    const char *name;
    void (*run)(const uint8_t *data, size_t size);
    size_t longest; /* of libFuzzer's inputs: a longer one says nothing that is new */
};

const std::vector<Target> &targets();

/* Where targets put their files: an empty directory that the caller makes and removes. */
void set_folder(const std::string &folder);

} // namespace fuzz

#endif
