"""Makes test/data/golden.safetensors: a small GPT's loss, logits and gradients by PyTorch.

test/test_golden.cpp holds gptloom to these values. They are computed in double precision from
fp32 parameters; the same in single precision is computed beside them, only to print how far
PyTorch's own fp32 lies from double.

Constants that gptloom carries in fp32 on every device (the layernorm's epsilon, the attention's
scale) are given to PyTorch as those fp32 numbers, so that double precision on both sides means
the same function.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from gpt import GPT, NO_TARGET, GPTConfig, as_in_file, file_tensors, load_file_tensors

OUT = Path(__file__).resolve().parents[2] / "test" / "data" / "golden.safetensors"
B, T = 2, 12
N_HEAD, HEAD = 2, 12  # 12 is no multiple of a vector's length, nor 61 of the vocabulary's padding
CONFIG = GPTConfig(
    n_layer=2,
    n_head=N_HEAD,
    n_embd=N_HEAD * HEAD,
    block_size=16,
    vocab_size=61,
    layernorm_epsilon=float(np.float32(1e-5)),
    attention_scale=float(np.float32(1) / np.sqrt(np.float32(HEAD))),
)


def random_parameters(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Parameters whose every part matters: activations and logits of order one, biases away from
    zero, layernorm weights away from one."""
    parameters = {}
    for name, zero in file_tensors(GPT(CONFIG)).items():
        normal = torch.randn(zero.shape, generator=generator)
        if name.endswith("bias"):
            parameters[name] = 0.2 * normal
        elif zero.dim() == 1:
            parameters[name] = 1 + 0.2 * normal
        elif ".h." in name:
            parameters[name] = normal / zero.shape[0] ** 0.5
        else:
            parameters[name] = 0.3 * normal
    return parameters


def random_batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens with repetitions and the vocabulary's two ends; two positions have no target."""
    tokens = torch.randint(CONFIG.vocab_size, (B, T), generator=generator)
    targets = torch.randint(CONFIG.vocab_size, (B, T), generator=generator)
    tokens[0, 3], tokens[0, 7], tokens[1, 5] = 0, CONFIG.vocab_size - 1, int(tokens[0, 1])
    targets[0, 0], targets[1, 2] = CONFIG.vocab_size - 1, 0
    targets[0, 5], targets[1, T - 1] = NO_TARGET, NO_TARGET
    return tokens, targets


def evaluate(
    parameters: dict[str, torch.Tensor],
    tokens: torch.Tensor,
    targets: torch.Tensor,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    """logits, loss and grad.NAME of each parameter, computed in `dtype`."""
    model = GPT(CONFIG).to(dtype)
    load_file_tensors(model, parameters)
    logits = model(tokens)
    loss = model.loss(tokens, targets)
    loss.backward()
    result = {"logits": logits.detach(), "loss": loss.detach().reshape(1)}
    for name, parameter in model.named_parameters():
        result["grad." + name] = as_in_file(name, parameter.grad)
    return result


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """||value - reference|| / ||reference||"""
    return float((value.double() - reference).norm() / reference.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=OUT, help="file to write (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=2, help="of parameters and tokens")
    arguments = parser.parse_args()

    generator = torch.Generator().manual_seed(arguments.seed)
    parameters = random_parameters(generator)
    tokens, targets = random_batch(generator)
    double = evaluate(parameters, tokens, targets, torch.float64)
    single = evaluate(parameters, tokens, targets, torch.float32)
    errors = {name: relative_error(single[name], double[name]) for name in double}

    shape = [CONFIG.n_layer, CONFIG.n_head, CONFIG.n_embd, CONFIG.block_size, CONFIG.vocab_size]
    tensors = {
        "config": torch.tensor(shape, dtype=torch.int32),  # in the order of loom_gpt_config
        "tokens": tokens.int(),
        "targets": targets.int(),
        "loss": double.pop("loss"),
    }
    tensors |= parameters
    tensors |= {name: value.float() for name, value in double.items()}
    about = {
        "script": "dev/torch/golden.py",
        "seed": arguments.seed,
        "torch": torch.__version__,
        "config": asdict(CONFIG),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    # One entry: safetensors writes several in a changing order, and the file would change with it.
    save_file(tensors, arguments.out, metadata={"made_by": json.dumps(about)})

    for name, error in errors.items():
        print(f"{error:10.2e}  {name}")
    print(f"above: how far fp32 in PyTorch {torch.__version__} lies from double")
    print(f"loss {float(tensors['loss']):.6f}")
    print(f"wrote {arguments.out}, {arguments.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
