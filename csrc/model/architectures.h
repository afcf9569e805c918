/* What architectures and activations are called, here, in transformers, and by ops. */
#ifndef LOOM_MODEL_ARCHITECTURES_H
#define LOOM_MODEL_ARCHITECTURES_H

#include "gptloom/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What an architecture is called here and in transformers' config.json. */
typedef struct loom_gpt_names {
    const char *name;           /* "gpt2" */
    const char *model_type;     /* transformers' "model_type": "gpt2", */
    const char *class_name;     /* its class, "GPT2LMHeadModel", */
    const char *activation_key; /* the key of the activation, "activation_function", */
    const char *gelu;           /* and what the tanh form of GELU is called there */
} loom_gpt_names;

const loom_gpt_names *loom_gpt_names_of(loom_gpt_architecture architecture);

/* What the ops call an activation. */
loom_activation loom_activation_of(loom_gpt_activation activation);

#ifdef __cplusplus
}
#endif
#endif
