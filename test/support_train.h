/* What tests of training share: options as flags set them, trainers, and the bits that steps leave behind. */
#ifndef LOOM_TEST_SUPPORT_TRAIN_H
#define LOOM_TEST_SUPPORT_TRAIN_H

#include "support.h"

extern "C" {
#include "engine/trainer.h"
}

#include <map>

namespace support {

/* Options as flags set them, freed at the end. */
class Options {
  public:
    using Pairs = std::map<std::string, std::string>;

    explicit Options(const Pairs &pairs) : options_(loom_train_options_defaults()) {
        for (const auto &[key, value] : pairs)
            require([&, k = key, v = value](loom_error *error) {
                return loom_train_options_set(&options_, k.c_str(), v.c_str(), error);
            });
    }
    ~Options() {
        loom_train_options_free(&options_);
    }
    Options(const Options &) = delete;
    Options &operator=(const Options &) = delete;
    const loom_train_options *get() const {
        return &options_;
    }

  private:
    loom_train_options options_;
};

inline Options::Pairs operator+(Options::Pairs pairs, const Options::Pairs &changes) {
    for (const auto &[key, value] : changes) pairs[key] = value;
    return pairs;
}

/* Text with something to learn: words of a few, in random order. */
inline std::string some_text(size_t bytes, uint64_t seed) {
    static const char *const words[] = {"the ", "loom ", "weaves ", "a ", "thread ", "of ", "blue ", "wool.\n"};
    std::string text;
    for (uint64_t i = 0; text.size() < bytes; i++) text += words[loom_random(seed, LOOM_RANDOM_TEST, 0, i).word[0] % 8];
    text.resize(bytes);
    return text;
}

using Trainer = std::unique_ptr<loom_trainer, void (*)(loom_trainer *)>;

inline Trainer open_trainer(const Options &options) {
    loom_trainer *trainer = nullptr;
    require([&](loom_error *error) { return loom_trainer_open(&trainer, options.get(), NULL, NULL, error); });
    return Trainer(trainer, loom_trainer_close);
}

inline loom_step_report step(const Trainer &trainer) {
    loom_step_report report = {};
    require([&](loom_error *error) { return loom_trainer_step(trainer.get(), &report, error); });
    return report;
}

/* All that steps leave behind, as bits, with the losses on the way. */
inline std::string bits_of_steps(const Trainer &trainer, int steps) {
    std::string bits;
    for (int i = 0; i < steps; i++) {
        const loom_step_report report = step(trainer);
        bits.append((const char *)&report.loss, sizeof report.loss);
        bits.append((const char *)&report.grad_norm, sizeof report.grad_norm);
    }
    const loom_device *device = trainer->device;
    const loom_precision *precision = loom_gpt_get_precision(trainer->gpt);
    const std::pair<const void *, loom_dtype> tensors[] = {{loom_gpt_get_master(trainer->gpt), precision->master},
                                                           {loom_gpt_get_parameters(trainer->gpt), precision->storage},
                                                           {trainer->optimizer.moment1, precision->moment},
                                                           {trainer->optimizer.moment2, precision->moment}};
    for (const auto &[values, dtype] : tensors) {
        std::string raw((size_t)loom_gpt_get_layout(trainer->gpt)->elements * loom_dtype_size(dtype), 0);
        device->copy(trainer->device, NULL, raw.data(), values, raw.size(), LOOM_DEVICE_TO_HOST);
        require([&](loom_error *error) { return device->synchronize(trainer->device, NULL, error); });
        bits += raw;
    }
    return bits;
}

} // namespace support

#endif
