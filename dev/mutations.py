"""What dev/mutate-kernels.py breaks: one thing in one line or so, which the parity of an op must see.

Each mutation names the file, the text in it (which must be there exactly once), what stands there instead, the op whose
cases run, and their dtype if not all. A mutation of a header is seen by one source file, `compiled`.
"""

from typing import NamedTuple


class Mutation(NamedTuple):
    what: str
    file: str
    old: str
    new: str
    op: str
    dtype: str = "all"
    compiled: str = ""


ELEMENTWISE, REDUCE = "kernels/elementwise.h", "kernels/reduce.h"
SOFTMAX, MMA = "kernels/softmax.h", "kernels/attention_mma.cuh"
FORWARD, BACKWARD = "kernels/attention_forward_mma.cuh", "kernels/attention_backward_mma.cuh"
FP32 = "kernels/attention_fp32.cu"
FORWARD_BF16, BACKWARD_BF16 = (
    "kernels/attention_forward_bf16.cu",
    "kernels/attention_backward_bf16.cu",
)
MATMUL = "csrc/cuda/matmul.c"

MUTATIONS = [
    # ------------------------------------------------------------------------------------------------- elementwise
    Mutation(
        "wrong factor in the slope", "kernels/gelu.cu", "0.134145f", "0.044715f", "gelu_backward"
    ),
    Mutation(
        "the gate's other half",
        "kernels/gelu.cu",
        "gelu_gate(value[i]).open",
        "gelu_gate(value[i]).closed",
        "gelu_forward",
    ),
    Mutation(
        "negative values kept",
        "kernels/relu.cu",
        "value[i] < 0 ? 0 :",
        "value[i] < -1 ? 0 :",
        "relu_forward",
    ),
    Mutation(
        "> to >=",
        "kernels/relu.cu",
        "gradient[i] = value[i] > 0",
        "gradient[i] = value[i] >= 0",
        "relu_backward",
    ),
    Mutation(
        "only the output's rows looked at",
        "kernels/cast.cu",
        "elements_of(&a->out, &a->x)",
        "elements_of(&a->out)",
        "cast",
    ),
    Mutation(
        "writes beyond the row",
        ELEMENTWISE,
        "if (i < n) to[i] =",
        "to[i] =",
        "cast",
        compiled="kernels/cast.cu",
    ),
    Mutation(
        "a term twice",
        "kernels/add.cu",
        "sum[j] += term[j]",
        "sum[j] += sum[j]",
        "add",
    ),
    Mutation(
        "the second term's start not looked at",
        "kernels/add.cu",
        "elements_of(&a->out, &a->a, &a->b)",
        "elements_of(&a->out, &a->a)",
        "add",
    ),
    Mutation(
        "writes beyond the end",
        "kernels/add.cu",
        "store_floats(out + i, sum, n, e.packed)",
        "store_floats(out + i, sum, N, e.packed)",
        "add",
    ),
    Mutation("last row left out", "kernels/fill.cu", "row < e.rows", "row < e.rows - 1", "fill"),
    Mutation(
        "one value per pack",
        "kernels/fill.cu",
        "values[i] = value",
        "values[i] = i ? 0 : value",
        "fill",
    ),
    # ------------------------------------------------------------------------------------------------ sums and steps
    Mutation(
        "reads into the next block",
        "kernels/block_sum.cu",
        "count - i < N ? (int)(count - i) : N",
        "N",
        "block_sum",
    ),
    Mutation(
        "sum of one warp only",
        "kernels/block_sum.cu",
        "sum = block_sum<THREADS>(sum);",
        "sum = warp_sum(sum);",
        "block_sum",
    ),
    Mutation(
        "barrier left out",
        REDUCE,
        "partial[threadIdx.x / 32] = value;\n    __syncthreads();\n    float sum = 0;",
        "partial[threadIdx.x / 32] = value;\n    float sum = 0;",
        "block_sum",
        compiled="kernels/block_sum.cu",
    ),
    Mutation(
        "loss scale not halved",
        "kernels/step_scalars.cu",
        "state->loss_scale / 2",
        "state->loss_scale",
        "step_scalars",
    ),
    Mutation(
        "norm still scaled",
        "kernels/step_scalars.cu",
        "sqrt(squares) / (double)state.loss_scale",
        "sqrt(squares)",
        "step_scalars",
    ),
    Mutation(
        "barrier left out",
        "kernels/step_scalars.cu",
        "squares + start, m - start);\n        __syncthreads();",
        "squares + start, m - start);",
        "step_scalars",
    ),
    Mutation(
        "decay the wrong way round", "kernels/adamw.cu", "decay ? fmaf", "!decay ? fmaf", "adamw"
    ),
    Mutation(
        "updates that must be skipped", "kernels/adamw.cu", " || scalars->out.skip", "", "adamw"
    ),
    Mutation(
        "gradient's factor left out", "kernels/adamw.cu", "out->gradient_factor,", "1.0f,", "adamw"
    ),
    Mutation(
        "wrong column of the second moment",
        "kernels/adamw.cu",
        "load_floats(v, moment2 + i",
        "load_floats(v, moment1 + i",
        "adamw",
    ),
    Mutation(
        "first moment not its own",
        "kernels/adamw.cu",
        "store_updated(moment1 + i, m,",
        "store_updated(moment1 + i, v,",
        "adamw",
        "bf16",
    ),
    Mutation(
        "random bits above the half-word",
        "kernels/adamw.cu",
        ": word[i / 2] & 0xFFFF",
        ": word[i / 2]",
        "adamw",
        "bf16",
    ),
    # ------------------------------------------------------------------------------------- softmax and cross-entropy
    Mutation(
        "first half not waited for",
        SOFTMAX,
        "ptx::cp_async_wait<1>();",
        "ptx::cp_async_wait<2>();",
        "softmax_forward",
        compiled="kernels/softmax.cu",
    ),
    Mutation(
        "sum not scaled anew",
        SOFTMAX,
        "s.sum *= exp_approximate",
        "(void)exp_approximate",
        "softmax_forward",
        compiled="kernels/softmax.cu",
    ),
    Mutation(
        "second row not waited for",
        "kernels/softmax.cu",
        "ptx::cp_async_wait<0>();",
        "ptx::cp_async_wait<1>();",
        "softmax_backward",
    ),
    Mutation(
        "rows share a cache",
        "kernels/softmax.cu",
        "threadIdx.x / GROUP * 2 * C",
        "threadIdx.x / GROUP * C",
        "softmax_backward",
    ),
    Mutation(
        "gradient in the padding",
        "kernels/cross_entropy.cu",
        "if (column + i >= V) x[i] = 0;",
        "if (column + i > V) x[i] = 0;",
        "cross_entropy",
    ),
    Mutation(
        "loss scale left out",
        "kernels/cross_entropy.cu",
        " * a.scalars->state.loss_scale",
        "",
        "cross_entropy",
    ),
    Mutation(
        "wrong sign at the target",
        "kernels/cross_entropy.cu",
        "x[i] -= weight",
        "x[i] += weight",
        "cross_entropy",
    ),
    Mutation(
        "loss by the wrong thread",
        "kernels/cross_entropy.cu",
        "lane == target / N % GROUP",
        "lane == target % GROUP",
        "cross_entropy",
    ),
    # ---------------------------------------------------------------------------------------------------- layernorm
    Mutation(
        "mean not taken off",
        "kernels/layernorm.cu",
        "square += (x[i] - mean) * (x[i] - mean)",
        "square += x[i] * x[i]",
        "layernorm_forward",
    ),
    Mutation(
        "sum not rounded to storage",
        "kernels/layernorm.cu",
        "sum += to_float(added[c]);",
        "sum += to_float(x[c]);",
        "layernorm_forward",
    ),
    Mutation(
        "second group's sums lost",
        "kernels/layernorm.cu",
        "if (turn > 0) {",
        "if (turn > 1) {",
        "layernorm_backward",
    ),
    Mutation(
        "barrier left out",
        "kernels/layernorm.cu",
        "            __syncthreads();\n        }\n        if (group !=",
        "        }\n        if (group !=",
        "layernorm_backward",
    ),
    Mutation(
        "last warp's sum left out",
        "kernels/layernorm.cu",
        "for (int w = 1; w < SUM_WARPS; w++)",
        "for (int w = 1; w < SUM_WARPS - 1; w++)",
        "layernorm_backward",
    ),
    Mutation(
        "written instead of added to",
        "kernels/layernorm.cu",
        "give(dweight + column, sum, accumulate)",
        "give(dweight + column, sum, false)",
        "layernorm_backward",
    ),
    Mutation(
        "skip left out",
        "kernels/layernorm.cu",
        "skip ? dx + to_float(skip[c]) : dx",
        "dx",
        "layernorm_backward",
    ),
    # ---------------------------------------------------------------------------------------------------- embedding
    Mutation(
        "first position left out",
        "kernels/embedding.cu",
        "first_position + n % length)",
        "n % length)",
        "embedding_forward",
    ),
    Mutation(
        "rank counts itself",
        "kernels/embedding.cu",
        "__popc(alike & ((1u << lane) - 1))",
        "__popc(alike & ((2u << lane) - 1))",
        "embedding_backward",
    ),
    Mutation(
        "last piece of a run left out",
        "kernels/embedding.cu",
        "piece < high; piece++",
        "piece < high - 1; piece++",
        "embedding_backward",
    ),
    Mutation(
        "higher digits not sorted",
        "kernels/embedding.cu",
        "pass * DIGIT_BITS};",
        "0};",
        "embedding_backward",
    ),
    Mutation(
        "rows of tokens overwritten",
        "kernels/embedding.cu",
        "i < N; i++) sum[i] += values[i];",
        "i < N; i++) sum[i] = values[i];",
        "embedding_backward",
        "bf16-gradients",
    ),
    Mutation(
        "one column of a pack written",
        "kernels/embedding.cu",
        "values.at[j] = from_float<G>(from[i + j]);",
        "values.at[j] = from_float<G>(from[i]);",
        "embedding_backward",
        "bf16-gradients",
    ),
    Mutation(
        "positions overwritten",
        "kernels/embedding.cu",
        "if (accumulate) read_floats(sum, to);",
        "",
        "embedding_backward",
    ),
    # ---------------------------------------------------------------------------------------------------- attention
    Mutation(
        "tiles not waited for",
        FORWARD,
        "ptx::cp_async_wait<0>();",
        "ptx::cp_async_wait<1>();",
        "attention_forward",
        "bf16",
        FORWARD_BF16,
    ),
    Mutation(
        "barrier left out",
        FORWARD,
        "ptx::cp_async_wait<0>();\n        __syncthreads();",
        "ptx::cp_async_wait<0>();",
        "attention_forward",
        "bf16",
        FORWARD_BF16,
    ),
    Mutation(
        "own key masked",
        MMA,
        "if (ahead > 16 * m + i / 2 * 8 - 8 * n - i % 2)",
        "if (ahead >= 16 * m + i / 2 * 8 - 8 * n - i % 2)",
        "attention_forward",
        "bf16",
        FORWARD_BF16,
    ),
    Mutation(
        "no mask on the diagonal",
        FORWARD,
        "if (key + KEYS - 1 > position)",
        "if (key > position)",
        "attention_forward",
        "bf16",
        FORWARD_BF16,
    ),
    Mutation(
        "first query left out",
        FORWARD,
        "position = in.first_query + first + row;",
        "position = first + row;",
        "attention_forward",
        "bf16",
        FORWARD_BF16,
    ),
    Mutation(
        "lse not scaled",
        FORWARD,
        "maximum[m][i] * in.scale + logf",
        "maximum[m][i] + logf",
        "attention_forward",
        "bf16",
        FORWARD_BF16,
    ),
    Mutation(
        "out not scaled to a new maximum",
        FORWARD,
        "o[m][d][j] *= correction[m][j / 2];",
        "(void)correction;",
        "attention_forward",
        "bf16",
        FORWARD_BF16,
    ),
    Mutation(
        "wrong key head",
        FORWARD,
        "key_head = part.head / in.group;",
        "key_head = part.head % (in.heads / in.group);",
        "attention_forward",
        "bf16",
        FORWARD_BF16,
    ),
    Mutation(
        "> to >= in the mask",
        FP32,
        "if (key + thread_x() + j * SIDE > position + i * SIDE)",
        "if (key + thread_x() + j * SIDE >= position + i * SIDE)",
        "attention_forward",
        "fp32",
    ),
    Mutation(
        "barrier left out",
        FP32,
        "multiply_add<D, KEYS>(o, p, v);\n        __syncthreads();",
        "multiply_add<D, KEYS>(o, p, v);",
        "attention_forward",
        "fp32",
    ),
    Mutation(
        "delta left out",
        BACKWARD,
        " - subtract.at[i % 2])",
        ")",
        "attention_backward",
        "bf16",
        BACKWARD_BF16,
    ),
    Mutation(
        "lse of the wrong row",
        BACKWARD,
        "-lse2[m][j / 2]",
        "-lse2[m][j % 2]",
        "attention_backward",
        "bf16",
        BACKWARD_BF16,
    ),
    Mutation(
        "begins at a later query",
        BACKWARD,
        "max(first - in.first_query, 0) / QUERIES",
        "first / QUERIES",
        "attention_backward",
        "bf16",
        BACKWARD_BF16,
    ),
    Mutation(
        "dk not scaled",
        BACKWARD,
        "one[m][i] = 1, scale[m][i] = in.scale;",
        "one[m][i] = 1, scale[m][i] = 1;",
        "attention_backward",
        "bf16",
        BACKWARD_BF16,
    ),
    Mutation(
        "statistics of another tile",
        BACKWARD,
        "put_statistic(stage ^ 1)",
        "put_statistic(stage)",
        "attention_backward",
        "bf16",
        BACKWARD_BF16,
    ),
    Mutation(
        "half of delta's lanes",
        "kernels/attention.cu",
        "distance = DELTA_LANES / 2",
        "distance = DELTA_LANES / 4",
        "attention_backward",
        "fp32",
    ),
    # ----------------------------------------------------------------------------------------------- matrix products
    Mutation(
        "first warp's sum left out",
        "kernels/bias_gradient.cu",
        "for (int w = 0; w < ADDING_WARPS; w++)",
        "for (int w = 1; w < ADDING_WARPS; w++)",
        "matmul_backward_weight",
    ),
    Mutation(
        "bias gradient overwritten",
        "kernels/bias_gradient.cu",
        "accumulate ? to_float(dbias[column]) + total : total",
        "total",
        "matmul_backward_weight",
    ),
    Mutation(
        "cuBLASLt's sums taken twice",
        "kernels/bias_gradient.cu",
        "gather(exec, dbias, sums, 1, accumulate)",
        "gather(exec, dbias, sums, 2, accumulate)",
        "matmul_backward_weight",
    ),
    Mutation(
        "cuBLASLt's sums never added",
        "kernels/bias_gradient.cu",
        "gather(exec, dbias, sums, 1, accumulate)",
        "gather(exec, dbias, sums, 1, false)",
        "matmul_backward_weight",
    ),
    Mutation(
        "the other operand summed up",
        MATMUL,
        "w->transposed ? LOOM_CUDA_ROW_SUMS : LOOM_CUDA_COLUMN_SUMS",
        "w->transposed ? LOOM_CUDA_COLUMN_SUMS : LOOM_CUDA_ROW_SUMS",
        "matmul_backward_weight",
    ),
    Mutation(
        "rows for columns",
        "csrc/cuda/product.c",
        "return CUBLASLT_EPILOGUE_BGRADA",
        "return CUBLASLT_EPILOGUE_BGRADB",
        "matmul_backward_weight",
    ),
    Mutation(
        "sums where the product works",
        MATMUL,
        "void *sums = (char *)exec->workspace + product_workspace(LOOM_OP_matmul_backward_weight, w)",
        "void *sums = exec->workspace",
        "matmul_backward_weight",
    ),
    Mutation(
        "gradient that is added to overwritten",
        MATMUL,
        "summing_product(cuda, w, w->accumulate)",
        "summing_product(cuda, w, false)",
        "matmul_backward_weight",
    ),
    Mutation(
        "weight gradient overwritten",
        MATMUL,
        ".accumulate = w->accumulate",
        ".accumulate = false",
        "matmul_backward_weight",
    ),
    Mutation(
        "input gradient overwritten",
        MATMUL,
        ".accumulate = i->accumulate",
        ".accumulate = false",
        "matmul_backward_input",
    ),
    Mutation(
        "gaps between rows not seen",
        MATMUL,
        "view->shape[2] > 1 ? view->stride[2] : view->shape[3]",
        "view->shape[3]",
        "matmul_backward_input",
    ),
    Mutation(
        "activation of what it writes",
        MATMUL,
        "loom_gelu_forward){.out = a->out, .x = a->preactivation}",
        "loom_gelu_forward){.out = a->out, .x = a->out}",
        "matmul_forward",
    ),
]
