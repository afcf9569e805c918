/* cuBLASLt is loaded when a GPU is opened and not before, and a user is told what is wrong with it. */
#include "support.h"

#include "cuda/cublaslt_api.h"

#include <cstdlib>
#include <dlfcn.h>

namespace {

using namespace support;

const std::string library = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);

bool is_loaded() {
    return dlopen(library.c_str(), RTLD_NOLOAD | RTLD_LAZY) != nullptr;
}

bool load(loom_error *error) {
    return loom_cublaslt_load(error) != nullptr;
}

/* In one test, as what is loaded stays. */
TEST(CublasltLoad, IsDoneWhenAskedForAndSaysWhatIsMissing) {
    loom_device *device = nullptr;
    ASSERT_TRUE(loom_device_open(&device, "cpu", nullptr, nullptr));
    loom_device_close(device);
    EXPECT_FALSE(is_loaded()) << "every start of the program waits for it";

    setenv("LOOM_CUBLASLT", "/nowhere/lib.so", 1);
    refusal(load, {"--device cuda: ", "/nowhere/lib.so", "install", "LOOM_CUBLASLT=/path/to/" + library});
    EXPECT_NE(std::string(loom_device_cuda_build()).find("cuBLASLt not found"), std::string::npos);
    setenv("LOOM_CUBLASLT", "libm.so.6", 1);
    refusal(load, {"--device cuda: libm.so.6 ", "cublasLtGetVersion"});

    unsetenv("LOOM_CUBLASLT");
    loom_error error = {""};
    const loom_cublaslt_api *api = loom_cublaslt_load(&error);
    if (!api) GTEST_SKIP() << "the toolkit's library is not where the program looks: " << error.message;
    EXPECT_TRUE(is_loaded());
    EXPECT_EQ(api->GetVersion() / 10000, (size_t)CUBLAS_VER_MAJOR);
    EXPECT_STRNE(api->GetStatusString(CUBLAS_STATUS_NOT_SUPPORTED), api->GetStatusString(CUBLAS_STATUS_SUCCESS));
    setenv("LOOM_CUBLASLT", "/nowhere/lib.so", 1);
    EXPECT_EQ(loom_cublaslt_load(&error), api) << "once is enough";
}

} // namespace
