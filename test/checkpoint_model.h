/* What tests of checkpoints save and load: weights and moments of a small GPT in host memory, of which a rank has
 * slices. Without GoogleTest, for programs that are one rank. */
#ifndef LOOM_TEST_CHECKPOINT_MODEL_H
#define LOOM_TEST_CHECKPOINT_MODEL_H

#include "gptloom/checkpoint.h"

#include <cstring>
#include <deque>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace support {

/* A device whose memory is host memory; or one whose pointers the host cannot follow and whose copies happen no sooner
 * than they are waited for, as a GPU's may. */
class FakeDevice {
  public:
    explicit FakeDevice(bool remote) : remote_(remote) {
        device_.name = remote ? "remote" : "host";
        device_.storage = LOOM_F32;
        device_.statistics = LOOM_F32;
        device_.host_memory = !remote;
        device_.copy = copy;
        device_.synchronize = synchronize;
        device_.tuning_get = [](const loom_device *, char **, loom_error *) { return true; };
        device_.implementation = this;
    }
    FakeDevice(const FakeDevice &) = delete;

    loom_device *get() {
        return &device_;
    }
    void *address(void *memory) const {
        return remote_ ? turn(memory) : memory;
    }
    void *address(std::vector<float> &memory) const {
        return address(memory.data());
    }
    size_t pending() const {
        return queue_.size();
    }
    int synchronizations_until_failure = -1;

  private:
    static void *turn(const void *pointer) {
        return reinterpret_cast<void *>(reinterpret_cast<uintptr_t>(pointer) ^ uintptr_t{1} << 62);
    }

    static void copy(loom_device *device, loom_stream *, void *to, const void *from, size_t bytes,
                     loom_copy_kind kind) {
        auto *self = static_cast<FakeDevice *>(device->implementation);
        if (!self->remote_) {
            memcpy(to, from, bytes);
            return;
        }
        if (kind == LOOM_HOST_TO_DEVICE) to = turn(to);
        if (kind == LOOM_DEVICE_TO_HOST) from = turn(from);
        self->queue_.push_back([=] { memcpy(to, from, bytes); });
    }

    static bool synchronize(loom_device *device, loom_stream *, loom_error *error) {
        auto *self = static_cast<FakeDevice *>(device->implementation);
        for (const auto &work : self->queue_) work();
        self->queue_.clear();
        if (self->synchronizations_until_failure-- == 0) return loom_fail(error, "the device fell off the bus");
        return true;
    }

    bool remote_;
    loom_device device_{};
    std::deque<std::function<void()>> queue_;
};

/* --------------------------------------------------------------------------------------------------------------- slices */

/* How ranks share a bucket: where rank r's part of bucket b begins, with r == ranks where the last one's ends. */
using Cut = std::function<int64_t(int b, int r, int ranks, int64_t elements)>;

/* As ZeRO cuts. */
inline int64_t equal_cut(int, int r, int ranks, int64_t elements) {
    return elements / ranks * r;
}

/* Of different lengths, through the middle of rows, at any element. */
inline int64_t uneven_cut(int b, int r, int ranks, int64_t elements) {
    return r == 0 ? 0 : r == ranks ? elements : elements * r * r / (ranks * ranks) + 3 + b;
}

/* Each bucket is one rank's, and the others have nothing of it. */
inline int64_t bucket_cut(int b, int r, int ranks, int64_t elements) {
    return r > b % ranks ? elements : 0;
}

/* ----------------------------------------------------------------------------------------------------------- a model */

const float padding_mark = 7777.25f;

/* What of a model a save and a load are about. */
struct CheckpointKind {
    loom_gpt_config config = {2, 2, 8, 16, 257};
    int ranks = 1, rank = 0;
    Cut cut = equal_cut;
    loom_dtype dtype = LOOM_F32, moment_dtype = LOOM_F32;
};

/* Kinds that differ in all that may matter to ranks, with tensors that fill no whole number of lines, rows or buffers.
 * */
inline const std::vector<CheckpointKind> &several_kinds() {
    static const loom_gpt_config shape = {2, 2, 96, 64, 300, LOOM_GPT_RELU};
    static const std::vector<CheckpointKind> kinds = {{shape, 1, 0, equal_cut},
                                                      {shape, 1, 0, uneven_cut, LOOM_BF16, LOOM_BF16},
                                                      {shape, 1, 0, bucket_cut, LOOM_F32, LOOM_BF16}};
    return kinds;
}

/* A layout with memory for weights and moments. Here a rank has room for all, but its slices are what it was told to
 * have: all else is marked, and stays so. */
class CheckpointModel {
  public:
    explicit CheckpointModel(loom_device *device, const CheckpointKind &kind = {}, const FakeDevice *fake = nullptr)
        : config_(kind.config) {
        loom_error error;
        if (!loom_layout_create(&layout_, &config_, kind.ranks, &error)) throw std::runtime_error(error.message);
        for (auto *memory : {&weights, &moment1, &moment2})
            memory->assign(static_cast<size_t>(layout_.elements), padding_mark);
        const auto place = [&](std::vector<float> &memory, int64_t element, loom_dtype dtype) {
            char *at = reinterpret_cast<char *>(memory.data()) + static_cast<size_t>(element) * loom_dtype_size(dtype);
            return fake ? fake->address(at) : at;
        };
        for (int b = 0; b < layout_.n_buckets; b++) {
            const loom_bucket &bucket = layout_.bucket[b];
            const int64_t first = kind.cut(b, kind.rank, kind.ranks, bucket.elements);
            const int64_t end = kind.cut(b, kind.rank + 1, kind.ranks, bucket.elements), at = bucket.offset + first;
            if (first == end)
                slices_.push_back({});
            else
                slices_.push_back({first, end - first, place(weights, at, kind.dtype),
                                   place(moment1, at, kind.moment_dtype), place(moment2, at, kind.moment_dtype)});
        }
        tensors = {&config_, &layout_, device, slices_.data(), kind.dtype, kind.moment_dtype, true};
    }
    explicit CheckpointModel(FakeDevice &device, const CheckpointKind &kind = {})
        : CheckpointModel(device.get(), kind, &device) {
    }
    ~CheckpointModel() {
        loom_layout_destroy(&layout_);
    }
    CheckpointModel(const CheckpointModel &) = delete;
    CheckpointModel &operator=(const CheckpointModel &) = delete;

    /* Random bits, so that every kind of finite number occurs, subnormal ones included; the same whatever
     * the layout is padded for. What is in no slice stays marked. */
    void fill(uint64_t seed) {
        for_each_memory([&](std::vector<float> &memory, loom_dtype dtype) {
            const size_t size = loom_dtype_size(dtype);
            for (int i = 0; i < layout_.n_parameters; i++) {
                const loom_parameter &parameter = layout_.parameter[i];
                for (int64_t j = 0; j < parameter.rows * parameter.columns; j++) {
                    seed = seed * 6364136223846793005u + 1442695040888963407u;
                    const uint32_t bits = static_cast<uint32_t>(seed >> 32) & ~(1u << 30 | 1u << 14); /* finite */
                    if (has(parameter.offset + j)) memcpy(element(memory, parameter.offset + j, size), &bits, size);
                }
            }
        });
    }

    /* Whether the slices (of weights alone, where there are no moments) are bit for bit what `saved`, which has all,
     * has there; zero where no parameter is; and all else is as it was. "" if so. */
    std::string difference(CheckpointModel &saved) {
        std::string found;
        for_each_memory([&](std::vector<float> &memory, loom_dtype dtype) {
            const size_t size = loom_dtype_size(dtype);
            std::vector<float> expected(memory.size(), padding_mark);
            for (int64_t i = 0; i < layout_.elements; i++)
                if (has(i)) memset(element(expected, i, size), 0, size);
            std::vector<float> &all = &memory == &weights   ? saved.weights
                                      : &memory == &moment1 ? saved.moment1
                                                            : saved.moment2;
            for (int p = 0; p < layout_.n_parameters; p++) {
                const loom_parameter &mine = layout_.parameter[p], &other = saved.layout_.parameter[p];
                for (int64_t j = 0; j < mine.rows * mine.columns; j++)
                    if (has(mine.offset + j))
                        memcpy(element(expected, mine.offset + j, size), element(all, other.offset + j, size), size);
            }
            for (int64_t i = 0; found.empty() && i < layout_.elements; i++)
                if (memcmp(element(memory, i, size), element(expected, i, size), size) != 0)
                    found = std::string(&memory == &weights ? "weights" : "moments") + ", element " +
                            std::to_string(i) + (has(i) ? " of a slice" : " outside of slices") + " differ";
        });
        return found;
    }

    std::vector<float> weights, moment1, moment2;
    loom_checkpoint_tensors tensors;

    const loom_layout &layout() const {
        return layout_;
    }
    loom_gpt_config &config() {
        return config_;
    }

  private:
    static char *element(std::vector<float> &memory, int64_t i, size_t size) {
        return reinterpret_cast<char *>(memory.data()) + static_cast<size_t>(i) * size;
    }

    template <typename Run> void for_each_memory(Run run) {
        run(weights, tensors.dtype);
        if (!tensors.moments) return;
        run(moment1, tensors.moment_dtype);
        run(moment2, tensors.moment_dtype);
    }

    /* Whether an element of the layout is in a slice. */
    bool has(int64_t i) const {
        int b = 0;
        while (i >= layout_.bucket[b].offset + layout_.bucket[b].elements) b++;
        const int64_t place = i - layout_.bucket[b].offset;
        return place >= slices_[(size_t)b].first && place < slices_[(size_t)b].first + slices_[(size_t)b].elements;
    }

    loom_gpt_config config_;
    loom_layout layout_{};
    std::vector<loom_checkpoint_slice> slices_;
};

/* What is saved beside a model. */
inline loom_training_state state_of(int64_t step) {
    loom_training_state state{};
    state.step = step;
    state.tokens = step * 768;
    state.seed = 1337;
    state.data_identity = 0xfedcba9876543210u;
    state.batch = 12;
    state.seq_len = 64;
    state.training_tokens = 1003854;
    state.dtype = LOOM_F16;
    state.scalars = {step, 0, step, 2.5, 6.5, 1.0 / 3, 0.1, 0x1p15f, 1234};
    return state;
}

} // namespace support

#endif
