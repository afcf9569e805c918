/* Checkpoints that ranks (checkpoint_rank) write together: the same bytes as one writes alone, and nothing where one of
 * them fails. */
#include "support_checkpoint.h"
#include "support_ranks.h"

namespace {

using namespace support;

class CheckpointRanks : public MpiTest {
  protected:
    void works(int ranks, const std::string &scenario) {
        const Outcome o = mpirun(ranks, "checkpoint_rank", scenario + " " + run);
        EXPECT_EQ(o.status, 0) << ranks << " ranks: " << scenario;
        EXPECT_EQ(o.output, "");
    }
    /* What `checkpoint_rank save` saves, by one who has all. */
    void save_alone(const std::string &where) {
        for (size_t i = 0; i < several_kinds().size(); i++) {
            CheckpointModel model(device.get(), several_kinds()[i]);
            model.fill(i);
            const loom_training_state state = state_of(static_cast<int64_t>(i));
            require([&](loom_error *error) {
                return loom_checkpoint_save(where.c_str(), &model.tensors, &state, true, nullptr, error);
            });
        }
    }

    Device device = open_device("cpu");
    std::string run = here.at("run");
};

TEST_F(CheckpointRanks, AnyNumberOfThemWritesTheSameBytes) {
    const std::string alone = here.at("alone");
    save_alone(alone);
    for (const int ranks : {3, 2, 4}) {
        if (ranks != 3 && !full()) break;
        works(ranks, "save");
        EXPECT_TRUE(fingerprint(run) == fingerprint(alone)) << ranks << " ranks";
        fs::remove_all(run);
    }
}

TEST_F(CheckpointRanks, WhatSomeSavedOthersLoad) {
    works(4, "save");
    works(3, "load");
    if (full()) works(2, "load");
    for (size_t i = 0; i < several_kinds().size(); i++) {
        CheckpointModel saved(device.get(), several_kinds()[i]), loaded(device.get(), several_kinds()[i]);
        saved.fill(i);
        loom_checkpoint_info info;
        const std::string path = run + "/checkpoints/step-0000000" + std::to_string(i);
        require([&](loom_error *error) {
            return loom_checkpoint_open(path.c_str(), &info, error) &&
                   loom_checkpoint_load(&info, &loaded.tensors, error);
        });
        EXPECT_EQ(loaded.difference(saved), "") << path;
    }
}

TEST_F(CheckpointRanks, AFailureOfOneIsThatOfAllAndLeavesEverythingAsItWas) {
    works(2, "fail");
    fs::remove_all(run);
    works(3, "fail");
}

TEST_F(CheckpointRanks, ADeathLeavesTheEarlierCheckpointWhole) {
    const Outcome o = mpirun(3, "checkpoint_rank", "die " + run);
    EXPECT_NE(o.status, 0);
    EXPECT_NE(o.output.find("signal 25"), std::string::npos) << "it was to be SIGXFSZ: " << o.output;
    EXPECT_EQ(names_in(run + "/checkpoints").size(), 3u) << "the earlier one, latest, and what was begun";
    CheckpointModel saved(device.get(), several_kinds()[0]), loaded(device.get(), several_kinds()[0]);
    saved.fill(1);
    loom_checkpoint_info info;
    require([&](loom_error *error) {
        return loom_checkpoint_open(run.c_str(), &info, error) && loom_checkpoint_load(&info, &loaded.tensors, error);
    });
    EXPECT_EQ(info.state.step, 1);
    EXPECT_EQ(loaded.difference(saved), "");
    const loom_training_state state = state_of(2);
    require([&](loom_error *error) {
        return loom_checkpoint_save(run.c_str(), &saved.tensors, &state, true, nullptr, error);
    });
    EXPECT_EQ(names_in(run + "/checkpoints"), (std::set<std::string>{"latest", "step-00000001", "step-00000002"}));
}

} // namespace
