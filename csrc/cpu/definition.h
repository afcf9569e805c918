/* The ops of the table that is being compiled, and the scratch that each of them needs. */
#ifndef LOOM_CPU_DEFINITION_H
#define LOOM_CPU_DEFINITION_H

#include "cpu/real.h"

#define DECLARE(name) void LOOM_DEFINITION(name)(loom_context * ctx, const struct loom_##name *a);
LOOM_OP_LIST(DECLARE)
#undef DECLARE

size_t LOOM_DEFINITION(embedding_scratch)(const loom_device *device, const struct loom_embedding_forward *a);
size_t LOOM_DEFINITION(embedding_backward_scratch)(const struct loom_embedding_backward *a);
size_t LOOM_DEFINITION(layernorm_forward_scratch)(const loom_device *device, const struct loom_layernorm_forward *a);
size_t LOOM_DEFINITION(layernorm_backward_scratch)(const loom_device *device, const struct loom_layernorm_backward *a);
size_t LOOM_DEFINITION(matmul_scratch)(const loom_device *device);
size_t LOOM_DEFINITION(matmul_backward_weight_scratch)(const loom_device *device,
                                                       const struct loom_matmul_backward_weight *a);
size_t LOOM_DEFINITION(attention_forward_scratch)(const loom_device *device, const struct loom_attention_forward *a);
size_t LOOM_DEFINITION(attention_backward_scratch)(const loom_device *device, const struct loom_attention_backward *a);
size_t LOOM_DEFINITION(gelu_scratch)(const loom_device *device, const loom_view *view);
size_t LOOM_DEFINITION(relu_scratch)(const loom_device *device, const loom_view *view);
size_t LOOM_DEFINITION(softmax_scratch)(const loom_device *device, const loom_view *view);
size_t LOOM_DEFINITION(cross_entropy_scratch)(const loom_device *device, const struct loom_cross_entropy *a);
size_t LOOM_DEFINITION(cast_scratch)(const loom_device *device, const struct loom_cast *a);

/* The whole table of ops, and the rate of its multiply-adds (tables.h). */
const loom_ops *LOOM_DEFINITION(ops)(void);
double LOOM_DEFINITION(peak)(int threads, double seconds);
void LOOM_DEFINITION(install_products)(loom_ops *ops);

/* The table's queries. The tuned table forwards to them what it does not answer itself. */
bool LOOM_DEFINITION(supports)(const loom_device *device, loom_op op, const void *arguments, const char **why);
size_t LOOM_DEFINITION(workspace)(const loom_device *device, loom_op op, const void *arguments);

#endif
