/* csrc/comm/nccl_api.h against NCCL's own header; compiled where there is one. */
#include "comm/nccl_api.h"

#include <nccl.h>

#include <cstddef>
#include <string>
#include <type_traits>

namespace {

/* How a compiler passes a type: pointers are alike, enumerations are the integers they are made of. */
template <typename T> std::string passed() {
    const std::string size = std::to_string(sizeof(T));
    if (std::is_pointer<T>::value) return "pointer";
    if (std::is_void<T>::value) return "nothing";
    return (std::is_integral<T>::value || std::is_enum<T>::value ? "integer of " : "structure of ") + size;
}

/* A function's, from the type of a pointer to it: the functions themselves are not linked. */
template <typename F> struct signature;
template <typename R, typename... A> struct signature<R (*)(A...)> {
    static std::string text() {
        std::string all = passed<R>() + " of ";
        for (const std::string &argument : {std::string(), passed<A>()...}) all += argument + ", ";
        return all;
    }
};

} // namespace

/* A line for everything that differs. */
std::string nccl_header_differences() {
    std::string differences;
    const auto hold = [&](const char *what, const std::string &ours, const std::string &theirs) {
        if (ours != theirs) differences += std::string(what) + ": " + ours + " is " + theirs + " in nccl.h\n";
    };
    const auto number = [&](const char *what, long long ours, long long theirs) {
        hold(what, std::to_string(ours), std::to_string(theirs));
    };
#define FUNCTION(result, name, arguments)                                                                              \
    hold(#name, signature<decltype(loom_nccl_api::name)>::text(), signature<decltype(&nccl##name)>::text());
    LOOM_NCCL_FUNCTIONS(FUNCTION)
#undef FUNCTION
    number("success", LOOM_NCCL_SUCCESS, ncclSuccess);
    number("invalid usage", LOOM_NCCL_INVALID_USAGE, ncclInvalidUsage);
    number("in progress", LOOM_NCCL_IN_PROGRESS, ncclInProgress);
    number("uint8", LOOM_NCCL_UINT8, ncclUint8);
    number("int32", LOOM_NCCL_INT32, ncclInt32);
    number("int64", LOOM_NCCL_INT64, ncclInt64);
    number("float16", LOOM_NCCL_FLOAT16, ncclFloat16);
    number("float32", LOOM_NCCL_FLOAT32, ncclFloat32);
    number("float64", LOOM_NCCL_FLOAT64, ncclFloat64);
    number("bfloat16", LOOM_NCCL_BFLOAT16, ncclBfloat16);
    number("sum", LOOM_NCCL_SUM, ncclSum);
    number("id", sizeof(loom_nccl_id), sizeof(ncclUniqueId));
    const ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    number("magic", (unsigned)LOOM_NCCL_MAGIC, config.magic);
    number("undefined", LOOM_NCCL_UNDEFINED, config.minCTAs);
    number("oldest", LOOM_NCCL_OLDEST, NCCL_VERSION(2, 18, 0));
#define MEMBER(ours, theirs)                                                                                           \
    number(#ours, offsetof(loom_nccl_config, ours), offsetof(ncclConfig_t, theirs));                                   \
    hold(#ours, passed<decltype(loom_nccl_config::ours)>(), passed<decltype(ncclConfig_t::theirs)>())
    MEMBER(size, size);
    MEMBER(magic, magic);
    MEMBER(version, version);
    MEMBER(blocking, blocking);
    MEMBER(cluster_size, cgaClusterSize);
    MEMBER(least_ctas, minCTAs);
    MEMBER(most_ctas, maxCTAs);
    MEMBER(net_name, netName);
    MEMBER(split_share, splitShare);
#undef MEMBER
    return differences;
}
