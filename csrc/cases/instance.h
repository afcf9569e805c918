/* Op cases as parameters of GoogleTest: a shape of a file of cases, one of its ops, dtypes, a device's name. */
#ifndef LOOM_CASES_INSTANCE_H
#define LOOM_CASES_INSTANCE_H

#include "cases/case.h"

#include <gtest/gtest.h>

#include <cctype>
#include <cstdlib>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

struct Instance {
    const loom_op_cases *cases;
    const loom_case_shape *shape;
    int op;
    loom_case_dtypes dtypes;
    std::string device; /* empty where the test uses several */

    std::string op_name() const {
        return loom_op_name(cases->op[op].op);
    }

    /* Letters, digits and underscores, as GoogleTest wants it. */
    std::string name() const {
        char label[LOOM_CASE_LABEL];
        loom_case_label(cases, shape, label);
        std::string all = op_name() + " " + label + " " + dtypes.name + (device.empty() ? "" : " ") + device, plain;
        for (char ch : all)
            if (ch != '=') plain += std::isalnum(static_cast<unsigned char>(ch)) ? ch : '_';
        return plain;
    }
};

inline std::ostream &operator<<(std::ostream &out, const Instance &instance) {
    return out << instance.name();
}

inline std::string instance_name(const testing::TestParamInfo<Instance> &info) {
    return info.param.name();
}

struct CaseCloser {
    void operator()(loom_case *c) const {
        loom_case_close(c);
    }
};
using Case = std::unique_ptr<loom_case, CaseCloser>;

inline Case open_case(const Instance &i) {
    loom_case *c = nullptr;
    loom_error error;
    if (!loom_case_open(&c, i.cases, i.shape, i.dtypes, 1, &error)) throw std::runtime_error(error.message);
    return Case(c);
}

/* Whether all shapes are to be run, slow ones too: not in sanitizer builds, where they would take many times as long.
 * */
inline bool is_full() {
#if defined(__SANITIZE_ADDRESS__)
    return false;
#else
    return std::getenv("LOOM_TEST_FULL") != nullptr;
#endif
}

/* Calls f for every shape that is for this use. */
inline void for_each_shape(unsigned use, const std::function<void(const loom_op_cases *, const loom_case_shape *)> &f) {
    for (auto cases = loom_op_catalogue; *cases; cases++)
        for (int s = 0; s < (*cases)->n_shapes; s++)
            if (loom_case_is_for(&(*cases)->shapes[s], use, is_full())) f(*cases, &(*cases)->shapes[s]);
}

/* Every op of every shape used for parity, in every dtype that changes anything. */
inline std::vector<Instance> parity_instances(const std::string &device) {
    std::vector<Instance> all;
    for_each_shape(LOOM_CASE_PARITY, [&](const loom_op_cases *cases, const loom_case_shape *shape) {
        for (int op = 0; cases->op[op].arguments; op++)
            for (auto dtypes = loom_case_dtypes_tested; dtypes->name; dtypes++) {
                const Instance instance{cases, shape, op, *dtypes, device};
                if (loom_case_dtypes_matter(open_case(instance).get(), op)) all.push_back(instance);
            }
    });
    return all;
}

#endif
