"""The same work in PyTorch, in two ways; asked by ``against_torch.py`` through its standard input.

``authors``  As the authors of TinyBERT wrote it: float32, every example padded alike, the plain
             means of their losses, clipping and Adam tensor by tensor.
``expert``   What one would write today: bfloat16 where the device multiplies it (autocast, the
             teacher's weights as well), batches of like lengths padded to their longest, masked
             losses, no teacher layer that nobody reads, fused AdamW, and torch.compile if asked.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import works
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

WINDOW = 50  # batches within which examples are sorted by length
MASKED = -1e4
MULTIPLES = {"cpu": 8, "cuda": 16}  # of the expert's lengths; 16 cost a CPU a third


def dense(inputs: int, features: int, **others: nn.Module) -> nn.ModuleDict:
    """A dense layer and what else has its name in `transformers`."""
    return nn.ModuleDict({"dense": nn.Linear(inputs, features), **others})


class Layer(nn.Module):
    """A Transformer layer that returns its scores, named as `transformers` names it."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        parts = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
        norm = nn.LayerNorm(width, eps=1e-12)
        self.attention = nn.ModuleDict(
            {"self": nn.ModuleDict(parts), "output": dense(width, width, LayerNorm=norm)}
        )
        self.intermediate = dense(width, inner)
        self.output = dense(inner, width, LayerNorm=nn.LayerNorm(width, eps=1e-12))

    def forward(
        self, x: torch.Tensor, bias: torch.Tensor, scored: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """From x [B, T, D] to the layer's output and, if asked, its scores [B, H, T, T]."""
        own, out = self.attention["self"], self.attention["output"]
        q, k, v = (
            own[name](x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        if scored:
            scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + bias
            mixed = scores.softmax(-1) @ v
        else:
            scores, mixed = None, F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype))
        mixed = mixed.transpose(1, 2).flatten(2)
        x = out["LayerNorm"](x + out["dense"](mixed))
        inner = self.output["dense"](F.gelu(self.intermediate["dense"](x)))
        return self.output["LayerNorm"](x + inner), scores


class Bert(nn.Module):
    """The teacher or the student of a work."""

    def __init__(self, work: works.Work, who: str, folder: Path) -> None:
        super().__init__()
        shape = getattr(work, who)
        width = shape["hidden_size"]
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(shape["vocab_size"], width),
                "position_embeddings": nn.Embedding(512, width),
                "token_type_embeddings": nn.Embedding(2, width),
                "LayerNorm": nn.LayerNorm(width, eps=1e-12),
            }
        )
        layers = [
            Layer(width, shape["num_heads"], shape["intermediate_size"])
            for _ in range(shape["num_layers"])
        ]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        if work.num_labels:
            self.pooler = dense(width, width)
            self.classifier = nn.Linear(width, work.num_labels)
        elif who == "student":
            self.fit_dense = nn.Linear(width, work.teacher["hidden_size"])
        tensors = load_file(folder / f"{who}.safetensors")
        self.load_state_dict({name: x for name, x in tensors.items() if name in self.state_dict()})

    def forward(
        self, tokens: torch.Tensor, mask: torch.Tensor, scored: Collection[int]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
        """Hidden states 0..L [B, T, D] and, of the layers that are asked, scores [B, H, T, T]."""
        e = self.embeddings
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = e["word_embeddings"](tokens) + e["position_embeddings"](places)
        x = e["LayerNorm"](x + e["token_type_embeddings"](torch.zeros_like(tokens)))
        bias = ((1.0 - mask.to(x.dtype)) * MASKED)[:, None, None]
        states, scores = [x], []
        for index, layer in enumerate(self.encoder["layer"]):
            x, seen = layer(x, bias, index in scored)
            states.append(x)
            scores.append(seen)
        return states, scores

    def logits(self, last: torch.Tensor) -> torch.Tensor:
        """The classifier's [B, C]."""
        return self.classifier(torch.tanh(self.pooler["dense"](last[:, 0])))


class Side:
    """One way of doing a work.

    Args:
      folder: of the work.
      way: ``authors`` or ``expert``.
      device: ``cpu`` or ``cuda``.
      dtype: of the expert's operands, ``bfloat16`` or ``float32``.
      compiled: whether layers go through torch.compile.
    """

    def __init__(self, folder: Path, way: str, device: str, dtype: str, compiled: bool) -> None:
        self.folder, self.work = folder, works.read(folder)
        self.expert, self.device = way == "expert", device
        self.rounded = self.expert and dtype == "bfloat16"
        self.examples = works.read_examples(folder)
        self.teacher = Bert(self.work, "teacher", folder).to(device).eval().requires_grad_(False)
        self.student = Bert(self.work, "student", folder).to(device).train()
        if self.rounded:
            self.teacher.bfloat16()
        names = [n for n, _ in self.student.named_parameters()]
        bare = [n for n in names if n.endswith("bias") or "LayerNorm" in n]
        named = dict(self.student.named_parameters())
        groups = [
            {"params": [named[n] for n in names if n not in bare], "weight_decay": 0.01},
            {"params": [named[n] for n in bare], "weight_decay": 0.0},
        ]
        how = {"fused": True} if self.expert else {"foreach": False}
        self.optimizer = torch.optim.AdamW(groups, lr=self.work.learning_rate, **how)
        if compiled:  # layer by layer: like ones share what is compiled, and lengths vary
            for layer in (*self.teacher.encoder["layer"], *self.student.encoder["layer"]):
                layer.compile(dynamic=True)
        self.batches = self.order()

    def order(self) -> Iterator[list[np.ndarray]]:
        """Batches of examples, each epoch in another order."""
        rng, size = np.random.default_rng(0), self.work.batch_size
        while True:
            ids = rng.permutation(len(self.examples))
            if self.expert:
                window = WINDOW * size
                parts = [ids[at : at + window] for at in range(0, len(ids), window)]
                lengths = np.array([len(example) for example in self.examples])
                parts = [part[np.argsort(lengths[part], kind="stable")] for part in parts]
                ids = np.concatenate(parts)
            batches = [ids[at : at + size] for at in range(0, len(ids) - size + 1, size)]
            for index in rng.permutation(len(batches)):
                yield [self.examples[i] for i in batches[index]]

    def length(self, batch: list[np.ndarray]) -> int:
        """Positions of a batch."""
        if not self.expert:
            return self.work.padded
        longest = max(map(len, batch))
        return longest + -longest % MULTIPLES[self.device]

    def tensors(self, batch: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and the mask, [B, T]."""
        length = self.length(batch)
        tokens, mask = (np.zeros((len(batch), length), np.int64) for _ in range(2))
        for row, example in enumerate(batch):
            tokens[row, : len(example)], mask[row, : len(example)] = example, 1
        return tuple(torch.from_numpy(x).to(self.device, non_blocking=True) for x in (tokens, mask))

    def loss(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Of a batch, a scalar."""
        mine, theirs = len(self.student.encoder["layer"]), len(self.teacher.encoder["layer"])
        ends = [-(-i * theirs // mine) for i in range(mine + 1)]  # 0, 2, 3, 5, 6 for 6 -> 4
        pairs = [(i, end - 1) for i, end in enumerate(ends[1:])]
        # Where nobody reads them the expert's models make none, but on a CPU: torch's fused
        # attention takes longer there.
        scored = range(mine), range(theirs)
        if self.expert and self.device == "cuda":
            scored = ((), ()) if self.work.num_labels else tuple(zip(*pairs, strict=True))
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.rounded):
            with torch.no_grad():
                t_states, t_scores = self.teacher(tokens, mask, scored[1])
            s_states, s_scores = self.student(tokens, mask, scored[0])
            if self.work.num_labels:
                with torch.no_grad():
                    target = self.teacher.logits(t_states[-1]).float().softmax(-1)
                said = self.student.logits(s_states[-1]).float().log_softmax(-1)
                return -(target * said).mean()
            scores = sum(self.apart_scores(s_scores[i], t_scores[j], mask) for i, j in pairs)
            hidden = [
                (self.student.fit_dense(s_states[i]), t_states[end]) for i, end in enumerate(ends)
            ]
        return scores + sum(self.apart_states(a, b, mask) for a, b in hidden)

    def apart_scores(self, a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if not self.expert:
            a, b = (torch.where(x <= -1e2, torch.zeros_like(x), x) for x in (a, b))
            return F.mse_loss(a, b)
        pair = (mask[:, None, :, None] * mask[:, None, None, :]).bool()
        return ((a.float() - b.float()).square() * pair).sum() / (pair.sum() * a.shape[1])

    def apart_states(self, a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if not self.expert:
            return F.mse_loss(a, b)
        real = mask[..., None]
        return ((a.float() - b.float()).square() * real).sum() / (real.sum() * a.shape[-1])

    def steps(self, count: int) -> dict[str, Any]:
        """Makes updates; what they took."""
        began, examples, real = time.perf_counter(), 0, 0
        for _ in range(count):
            batch = next(self.batches)
            loss = self.loss(*self.tensors(batch))
            loss.backward()
            if self.expert:
                nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
            else:
                for parameter in self.student.parameters():
                    if parameter.grad is not None:
                        nn.utils.clip_grad_norm_([parameter], 1.0, foreach=False)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            examples += len(batch)
            real += sum(map(len, batch))
        last = loss.item()  # waits for the device
        return {
            "seconds": time.perf_counter() - began,
            "examples": examples,
            "real_tokens": real,
            "loss": last,
            "memory": self.memory(),
        }

    def first(self, count: int) -> dict[str, Any]:
        """The loss of the first examples at the first values; to be asked last."""
        self.student = Bert(self.work, "student", self.folder).to(self.device)
        with torch.no_grad():
            return {"loss": self.loss(*self.tensors(self.examples[:count])).item()}

    def settle(self, _: int) -> dict[str, Any]:
        """Sees every length of an epoch, for which products are made once; memory counts from here.

        In a run of many epochs that is no time.
        """
        size = self.work.batch_size
        epoch = itertools.islice(self.order(), len(self.examples) // size)
        for batch in {self.length(batch): batch for batch in epoch}.values():
            self.loss(*self.tensors(batch)).backward()
            self.optimizer.zero_grad(set_to_none=True)
        works.forget_peak()
        return {}

    def memory(self) -> int:
        """Bytes at most: of the GPU, else of the process."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return works.peak_memory()


def main() -> None:
    """Answers lines of JSON, ``["steps", 5]`` or ``["first", 32]``, one each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--way", required=True, choices=("authors", "expert"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    device = "cuda" if args.device == "gpu" else "cpu"
    side = Side(args.work, args.way, device, args.dtype, args.compile)
    for line in sys.stdin:
        name, count = json.loads(line)
        print(json.dumps(getattr(side, name)(count)), flush=True)


if __name__ == "__main__":
    main()
