/* dev/emulation's headers against NVIDIA's: objects that were compiled with either are linked with either the CUDA
 * libraries or the emulation. */
#include "cuda_headers.h"

#include <gtest/gtest.h>

TEST(CudaHeaders, AreCompatibleWithNvidias) {
    if (!nvidia_headers) GTEST_SKIP() << "the CUDA Toolkit is not here";
    const header_table own = describe_headers(), nvidia = nvidia_headers();
    ASSERT_EQ(own.size(), nvidia.size());
    ASSERT_GT(own.size(), 200u);
    for (size_t i = 0; i < own.size(); i++) {
        ASSERT_EQ(own[i].first, nvidia[i].first);
        EXPECT_EQ(own[i].second, nvidia[i].second) << own[i].first;
    }
}
