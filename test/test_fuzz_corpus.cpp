/* Every input of test/fuzz/corpus once more, those among them that broke something when `make fuzz` found them; and a
 * few thousand bytes changed at random in each. */
#include "fuzz/fuzz.h"
#include "support.h"

#include <random>
#include <set>

namespace {

namespace fs = std::filesystem;
using support::read_file;

fs::path corpus() {
    return fs::absolute(fs::path(__FILE__)).parent_path() / "fuzz/corpus";
}

class FuzzCorpus : public testing::TestWithParam<fuzz::Target> {
  protected:
    support::TemporaryDirectory here;
    std::vector<std::string> inputs;

    void SetUp() override {
        fuzz::set_folder(here.path().string());
        std::set<fs::path> files;
        for (const auto &entry : fs::directory_iterator(corpus() / GetParam().name)) files.insert(entry.path());
        for (const fs::path &file : files) inputs.push_back(read_file(file));
    }
    void TearDown() override {
        fuzz::set_folder("");
    }
    static void run(const std::string &input) {
        GetParam().run((const uint8_t *)input.data(), input.size());
    }
};

TEST_P(FuzzCorpus, KeepsItsPromises) {
    ASSERT_FALSE(inputs.empty());
    for (const std::string &input : inputs) run(input);
}

TEST_P(FuzzCorpus, AndWithRandomChanges) {
    std::mt19937 random(1);
    run("");
    for (int i = 0; i < 200; i++) {
        std::string input = inputs[random() % inputs.size()];
        for (unsigned change = 0; change <= random() % 4 && !input.empty(); change++) {
            const size_t at = random() % input.size();
            if (random() % 8 == 0)
                input.resize(at);
            else
                input[at] = (char)(random() % 2 ? input[at] ^ 1 << random() % 8 : random());
        }
        run(input);
    }
}

INSTANTIATE_TEST_SUITE_P(All, FuzzCorpus, testing::ValuesIn(fuzz::targets()),
                         [](const auto &each) { return std::string(each.param.name); });

} // namespace
