/* One rank of a test of checkpoints: test_checkpoint_ranks starts several of these.
 *
 *     checkpoint_rank SCENARIO RUN
 *
 * Ends with status 0, or with 1 and lines that say what is wrong; 2 is an error where none should be. */
#include "checkpoint_model.h"

#include "gptloom/gptloom.h"

#include "comm/collectives.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <string>

#include <sys/resource.h>
#include <unistd.h>

namespace fs = std::filesystem;
using namespace support;

namespace {

loom_comm *comm;
loom_device *device;
fs::path run;
int wrong;

void require(const std::function<bool(loom_error *)> &action) {
    loom_error error = {""};
    if (action(&error)) return;
    if (comm) loom_comm_abort(comm, &error, 2);
    fprintf(stderr, "gptloom: %s\n", error.message);
    exit(2);
}

void expect(bool holds, const std::string &what) {
    if (holds) return;
    if (wrong++ < 10) fprintf(stderr, "rank %d: wrong: %s\n", comm->rank, what.c_str());
}

CheckpointKind mine(CheckpointKind kind) {
    kind.ranks = comm->size;
    kind.rank = comm->rank;
    return kind;
}

bool save_step(const CheckpointModel &model, int64_t step, loom_error *error) {
    const loom_training_state state = state_of(step);
    return loom_checkpoint_save(run.c_str(), &model.tensors, &state, true, comm, error);
}

/* Each of the kinds, as a step of its own. */
void save() {
    for (size_t i = 0; i < several_kinds().size(); i++) {
        CheckpointModel model(device, mine(several_kinds()[i]));
        model.fill(i);
        require([&](loom_error *error) { return save_step(model, (int64_t)i, error); });
    }
}

/* By slices like those that some number of ranks saved, by others, and by ones that overlap as all is in each. */
void load() {
    for (size_t i = 0; i < several_kinds().size(); i++) {
        const CheckpointKind kind = several_kinds()[i];
        CheckpointKind equal = kind;
        equal.cut = equal_cut;
        CheckpointModel saved(device, kind);
        saved.fill(i);
        for (const CheckpointKind &wanted : {mine(kind), mine(equal), kind}) {
            CheckpointModel loaded(device, wanted);
            loom_checkpoint_info info;
            const std::string path = run / "checkpoints" / ("step-0000000" + std::to_string(i));
            require([&](loom_error *error) {
                return loom_checkpoint_open(path.c_str(), &info, error) &&
                       loom_checkpoint_load(&info, &loaded.tensors, error);
            });
            expect(loaded.difference(saved).empty(), path + ": " + loaded.difference(saved));
        }
    }
}

/* -------------------------------------------------------------------------------------------------------------- failures */

/* What is in the checkpoints' directory: names, and when each was last written. */
std::string listing() {
    std::map<std::string, std::string> entries;
    for (const auto &entry : fs::recursive_directory_iterator(run / "checkpoints"))
        entries[entry.path()] = entry.is_symlink()
                                    ? fs::read_symlink(entry).string()
                                    : std::to_string(fs::last_write_time(entry).time_since_epoch().count());
    std::string all;
    for (const auto &[name, what] : entries) all += name + " " + what + "\n";
    return all;
}

/* A save that one rank cannot do: all say so in the same words, and nothing has changed. `before` and `after` are
 * called by that rank alone. */
void fails(const CheckpointModel &model, int rank, const std::function<void()> &before,
           const std::function<void()> &after, std::initializer_list<std::string> words) {
    const std::string was = listing();
    require([](loom_error *error) { return loom_comm_barrier(comm, error); });
    loom_error error = {""};
    if (comm->rank == rank) before();
    const bool ok = save_step(model, 2, &error);
    if (comm->rank == rank) after();
    const std::string is = listing(); /* at once: no rank returns before rank 0 has cleaned up */
    expect(!ok, "this save was to fail");
    const std::string message = error.message;
    expect(message.find("rank " + std::to_string(rank) + ": ") == 0, message);
    for (const std::string &word : words) expect(message.find(word) != std::string::npos, word + " in: " + message);
    std::string padded = message;
    padded.resize(sizeof error.message);
    require([&](loom_error *why) { return loom_comm_agree(comm, "the error", padded.data(), padded.size(), why); });
    expect(is == was, "what failed has left: " + is + "where there was: " + was);
    require([](loom_error *why) { return loom_comm_barrier(comm, why); });
}

/* No file of this process may grow beyond so many bytes: what a full disk does, without one. */
void fill_disk(rlim_t largest, void (*handler)(int)) {
    rlimit limit;
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = largest;
    signal(SIGXFSZ, handler);
    setrlimit(RLIMIT_FSIZE, &limit);
}

bool (*synchronize)(loom_device *device, loom_stream *stream, loom_error *error);

void fail() {
    CheckpointModel model(device, mine(several_kinds()[0]));
    model.fill(1);
    require([&](loom_error *error) { return save_step(model, 1, error); });
    const fs::path step = run / "checkpoints/step-00000001";
    const auto weights = (rlim_t)fs::file_size(step / "model.safetensors");
    const auto full = [&](rlim_t size) { return [=] { fill_disk(size, SIG_IGN); }; };
    const auto free = [] { fill_disk(RLIM_INFINITY, SIG_DFL); };
    const int last = comm->size - 1;

    /* Where a rank writes its part; and where rank 0 makes the files. */
    fails(model, last, full(weights / 2), free, {"/model.safetensors", "File too large"});
    fails(model, last, full(weights), free, {"/optimizer.safetensors", "File too large"});
    fails(model, 0, full(weights), free, {"/optimizer.safetensors", "File too large"});
    fails(model, 0, full(8), free, {"/config.json", "File too large"});

    const auto break_device = [] {
        synchronize = device->synchronize;
        device->synchronize = [](loom_device *, loom_stream *, loom_error *error) {
            return loom_fail(error, "the device fell off the bus");
        };
    };
    fails(model, 1, break_device, [] { device->synchronize = synchronize; }, {"fell off the bus"});

    /* A directory of the same name that is not the same. */
    const fs::path whole = run, here = run.parent_path(), elsewhere = here / "elsewhere";
    const auto leave = [&] {
        fs::create_directories(elsewhere / run / "checkpoints");
        fs::current_path(elsewhere);
    };
    fs::current_path(here);
    run = run.filename();
    fails(model, last, leave, [&] { fs::current_path(here); },
          {"/.tmp-", "-step-00000002: ", "rank 0 has made it", "file system that all ranks share"});
    run = whole;

    /* When all is written and has its name, it stays. */
    const fs::path latest = run / "checkpoints/latest", second = run / "checkpoints/step-00000002";
    const auto once = [](const std::function<void()> &action) {
        require([](loom_error *error) { return loom_comm_barrier(comm, error); }); /* all have seen what there was */
        if (comm->rank == 0) action();
        require([](loom_error *error) { return loom_comm_barrier(comm, error); });
    };
    once([&] { fs::remove(latest), fs::create_directory(latest); });
    loom_error told = {""};
    expect(!save_step(model, 2, &told), "a directory in latest's place");
    expect(strstr(told.message, "cannot be renamed") && fs::exists(second) && fs::exists(step), told.message);
    once([&] { fs::remove(latest), fs::remove_all(second); });

    require([&](loom_error *error) { return save_step(model, 2, error); });
    expect(fs::exists(step) && fs::read_symlink(latest) == "step-00000002",
           "the next save is the latest: " + listing());
}

/* The last rank dies in the middle of its part of a file: of SIGXFSZ. */
void die() {
    CheckpointModel model(device, mine(several_kinds()[0]));
    model.fill(1);
    require([&](loom_error *error) { return save_step(model, 1, error); });
    model.fill(2);
    const auto weights = (rlim_t)fs::file_size(run / "checkpoints/step-00000001/model.safetensors");
    if (comm->rank == comm->size - 1) fill_disk(weights, SIG_DFL);
    save_step(model, 2, nullptr);
    pause(); /* until mpirun ends what is left */
}

} // namespace

int main(int argc, char **argv) {
    static const std::map<std::string, void (*)()> scenarios = {
        {"save", save}, {"load", load}, {"fail", fail}, {"die", die}};
    if (argc != 3) return fprintf(stderr, "what is to be done, and where?\n"), 1;
    run = argv[2];
    const loom_comm_options options = {"mpi", 60};
    loom_device_options one_thread = {};
    one_thread.threads = 1;
    require([&](loom_error *error) { return loom_comm_open(&comm, &options, error); });
    require([&](loom_error *error) { return loom_device_open(&device, "cpu", &one_thread, error); });
    scenarios.at(argv[1])();
    loom_comm_close(comm);
    loom_device_close(device);
    return wrong ? 1 : 0;
}
