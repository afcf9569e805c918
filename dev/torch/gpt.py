"""GPT-1 and GPT-2 in PyTorch, as gptloom defines them: what the scripts of this folder compare with.

Learned positions, blocks of causal attention by scaled_dot_product_attention and a tanh-GELU MLP,
and a classifier tied to the token embedding. GPT-2 has layernorms before attention and MLP and at
the end (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019), GPT-1 has
them behind the sums (Radford et al., "Improving Language Understanding by Generative
Pre-Training", 2018).

Modules are named as in Hugging Face's GPT2LMHeadModel and OpenAIGPTLMHeadModel, so a parameter's name is its name in
model.safetensors. The one difference is orientation: files hold the four projections of a block
as (in, out), torch.nn.Linear holds them as (out, in). `file_tensors` and `load_file_tensors`
translate.
"""

import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

# What the MLP applies between its products, by transformers' names.
ACTIVATIONS = {"gelu_new": partial(F.gelu, approximate="tanh"), "relu": F.relu}
ACTIVATIONS["relu2"] = lambda x: F.relu(x).square()
ACTIVATIONS["gelu"] = ACTIVATIONS["gelu_new"]  # as it is called in GPT-1's config.json

NO_TARGET = -1  # a position with this target counts neither in the loss nor in the gradients


@dataclass(frozen=True)
class GPTConfig:
    """The model's shape, and what defaults to GPT-2's."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    layernorm_epsilon: float = 1e-5
    attention_scale: float | None = None  # None: 1/sqrt(n_embd / n_head)
    activation: str = "gelu_new"
    architecture: str = "gpt2"  # or "gpt1"


class Attention(nn.Module):
    """Causal self-attention with packed queries, keys and values."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head = config.n_head
        self.scale = config.attention_scale
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (B, H, T, D)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return self.c_proj(out.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Two products with an activation between them."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.activation(self.c_fc(x)))


class Block(nn.Module):
    """Attention and MLP, each with a residual connection, and a layernorm before them or behind the
    sum."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layernorm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layernorm_epsilon)
        self.mlp = MLP(config)
        self.norm_first = config.architecture == "gpt2"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.norm_first:
            x = x + self.attn(self.ln_1(x))
            return x + self.mlp(self.ln_2(x))
        x = self.ln_1(x + self.attn(x))
        return self.ln_2(x + self.mlp(x))


class GPT(nn.Module):
    """The whole model: token ids in, logits out."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        of_gpt2 = config.architecture == "gpt2"
        self.names = ("wte", "wpe") if of_gpt2 else ("tokens_embed", "positions_embed")
        parts = {
            self.names[0]: nn.Embedding(config.vocab_size, config.n_embd),
            self.names[1]: nn.Embedding(config.block_size, config.n_embd),
            "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
        }
        if of_gpt2:
            parts["ln_f"] = nn.LayerNorm(config.n_embd, eps=config.layernorm_epsilon)
        self.transformer = nn.ModuleDict(parts)
        self.initialise()

    def initialise(self) -> None:
        """The published initialisation: weights normal(0, 0.02), GPT-2's residual projections
        narrower by 1/sqrt(2 n_layer), biases 0, layernorms 1."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 1:
                nn.init.ones_(parameter)
            else:
                residual = self.config.architecture == "gpt2" and name.endswith("c_proj.weight")
                std = 0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02
                nn.init.normal_(parameter, mean=0.0, std=std)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (B, T) -> logits (B, T, vocab_size)"""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        embed, place = (self.transformer[name] for name in self.names)
        x = embed(tokens) + place(positions)
        for block in self.transformer["h"]:
            x = block(x)
        if "ln_f" in self.transformer:
            x = self.transformer["ln_f"](x)
        return F.linear(x, embed.weight)

    def loss(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy, in nats, over the targets that are not NO_TARGET."""
        return mean_loss(self(tokens), targets)


def mean_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy, in nats, of logits (B, T, V) over the targets that are not NO_TARGET."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET)


def is_turned(name: str) -> bool:
    """Whether a parameter lies as (in, out) in files and as (out, in) here."""
    return name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def as_in_file(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A parameter, or its gradient, in the orientation of files."""
    return (tensor.t() if is_turned(name) else tensor).detach().contiguous()


def file_tensors(model: GPT) -> dict[str, torch.Tensor]:
    """All parameters, as files hold them."""
    return {name: as_in_file(name, tensor) for name, tensor in model.named_parameters()}


def load_file_tensors(model: GPT, tensors: dict[str, torch.Tensor]) -> None:
    """Fills the model from tensors as files hold them; names and shapes must agree exactly."""
    turned = {name: tensor.t() if is_turned(name) else tensor for name, tensor in tensors.items()}
    model.load_state_dict(turned, strict=True)


def load_checkpoint(directory: Path) -> GPT:
    """The model in a directory of config.json and model.safetensors."""
    from safetensors.torch import load_file

    saved = json.loads((directory / "config.json").read_text())
    of_gpt2 = saved["model_type"] == "gpt2"
    config = GPTConfig(
        n_layer=saved["n_layer"],
        n_head=saved["n_head"],
        n_embd=saved["n_embd"],
        block_size=saved["n_positions"],
        vocab_size=saved["vocab_size"],
        layernorm_epsilon=saved["layer_norm_epsilon"],
        activation=saved["activation_function" if of_gpt2 else "afn"],
        architecture="gpt2" if of_gpt2 else "gpt1",
    )
    model = GPT(config)
    load_file_tensors(model, load_file(directory / "model.safetensors"))
    return model.eval()
