"""BERT from standard PyTorch modules in float64, one unpadded example at a time.

Written from the papers' equations; parameters bear the names that `transformers` gives them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from jaxbert.data.packing import Examples
from jaxbert.interop.layout import from_tensors, to_tensors
from jaxbert.models.bert import BertConfig

functional = nn.functional
torch.set_num_threads(1)  # of so small products more only wait for each other


def dense(inputs: int, features: int, **others: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(inputs, features), **others})


class TorchBert(nn.Module):
    """The model that a configuration and jaxbert's parameters describe."""

    def __init__(self, config: BertConfig, params: dict[str, Any]) -> None:
        super().__init__()
        c = self.config = config
        self.groups = tuple(params)
        width = c.hidden_size

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(width, eps=c.layer_norm_eps)

        def layer() -> nn.ModuleDict:
            names = ("query", "key", "value")
            attention = {
                "self": nn.ModuleDict({name: nn.Linear(width, width) for name in names}),
                "output": dense(width, width, LayerNorm=norm()),
            }
            return nn.ModuleDict(
                {
                    "attention": nn.ModuleDict(attention),
                    "intermediate": dense(width, c.intermediate_size),
                    "output": dense(c.intermediate_size, width, LayerNorm=norm()),
                }
            )

        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(c.vocab_size, width),
                "position_embeddings": nn.Embedding(c.max_position_embeddings, width),
                "token_type_embeddings": nn.Embedding(c.type_vocab_size, width),
                "LayerNorm": norm(),
            }
        )
        layers = nn.ModuleList([layer() for _ in range(c.num_layers)])
        self.encoder = nn.ModuleDict({"layer": layers})
        if "pooler" in params:
            self.pooler = dense(width, width)
        self.head = "qa_outputs" if c.head == "spans" else "classifier"
        self.add_module(self.head, nn.Linear(width, c.num_labels))
        if "mlm" in params:
            words = nn.ModuleDict({"transform": dense(width, width, LayerNorm=norm())})
            words.bias = nn.Parameter(torch.zeros(c.vocab_size))
            self.cls = nn.ModuleDict({"predictions": words})
        if c.projection_per_layer:
            fits = [nn.Linear(width, c.projection_size) for _ in range(c.num_layers + 1)]
            self.fit_denses = nn.ModuleList(fits)
        elif c.projection_size:
            self.fit_dense = nn.Linear(width, c.projection_size)
        tensors = to_tensors(c, params, "")
        self.load_state_dict({name: torch.from_numpy(x.copy()) for name, x in tensors.items()})
        self.double()

    def forward(self, tokens: torch.Tensor, types: torch.Tensor) -> tuple[list, list]:
        """Hidden states [T, D] 0..L and scores [H, T, T] 0..L-1 of one example [T]."""
        e = self.embeddings
        positions = torch.arange(len(tokens))
        x = e["word_embeddings"](tokens) + e["position_embeddings"](positions)
        x = e["LayerNorm"](x + e["token_type_embeddings"](types))
        states, scores = [x], []
        for layer in self.encoder["layer"]:
            attention = layer["attention"]
            query, key, value = (
                linear(x).unflatten(1, (self.config.num_heads, -1)).transpose(0, 1)
                for linear in attention["self"].values()
            )  # [H, T, K]
            scores.append(query @ key.mT / query.shape[-1] ** 0.5)
            mixed = (scores[-1].softmax(-1) @ value).transpose(0, 1).flatten(1)
            out = attention["output"]
            x = out["LayerNorm"](x + out["dense"](mixed))
            inner = functional.gelu(layer["intermediate"]["dense"](x))
            x = layer["output"]["LayerNorm"](x + layer["output"]["dense"](inner))
            states.append(x)
        return states, scores

    def fit(self, states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The states in the teacher's width."""
        if self.config.projection_per_layer:
            return [fit(x) for fit, x in zip(self.fit_denses, states, strict=True)]
        return [self.fit_dense(x) for x in states] if self.config.projection_size else list(states)

    def logits(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits [C] of an example, or [T, C] of its pieces, which tags and spans are of."""
        read = states[-1]
        if "pooler" in self.groups:
            read = self.pooled(states)
            if self.config.classifier == "tinybert":
                read = torch.relu(read)
        return self.get_submodule(self.head)(read)

    def pooled(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """The pooled output [D]."""
        return torch.tanh(self.pooler["dense"](states[-1][0]))

    def words(self, states: torch.Tensor) -> torch.Tensor:
        """The masked-LM head's logits [..., V] of last states [..., D]."""
        head = self.cls["predictions"]
        inner = functional.gelu(head["transform"]["dense"](states))
        table = self.embeddings["word_embeddings"].weight
        return functional.linear(head["transform"]["LayerNorm"](inner), table, head.bias)

    def params(self) -> dict[str, Any]:
        """As jaxbert's tree."""
        state = {name: x.numpy(force=True) for name, x in self.named_parameters()}
        return from_tensors(self.config, self.groups, state.__getitem__)

    def gradients(self) -> dict[str, Any]:
        """As jaxbert's tree; zero where there is none."""
        found = {
            name: np.zeros(x.shape) if x.grad is None else x.grad.numpy(force=True)
            for name, x in self.named_parameters()
        }
        return from_tensors(self.config, self.groups, found.__getitem__)


def inputs(examples: Examples) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and token types [T] of each example."""
    for i in range(len(examples)):
        tokens = examples.tokens[examples.offsets[i] : examples.offsets[i + 1]]
        types = np.arange(len(tokens)) >= examples.seconds[i]
        yield torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(types.astype(np.int64))


def layer_loss(
    student: TorchBert, teacher: TorchBert, examples: Examples, layers: Sequence[int]
) -> torch.Tensor:
    """Equations 7 to 9 of Jiao et al. 2020: sums over layers of means over what is real.

    Args:
      student: trained.
      teacher: frozen.
      examples: unlabelled.
      layers: teacher layers, from 1, for the student's.
    """
    errors: dict[str, list[torch.Tensor]] = {}
    for tokens, types in inputs(examples):
        states, scores = student(tokens, types)
        with torch.no_grad():
            their_states, their_scores = teacher(tokens, types)
        for i, (mine, j) in enumerate(zip(student.fit(states), (0, *layers), strict=True)):
            errors.setdefault(f"hidden{i}", []).append((mine - their_states[j]) ** 2)
        for i, (mine, j) in enumerate(zip(scores, layers, strict=True)):
            errors.setdefault(f"scores{i}", []).append((mine - their_scores[j - 1]) ** 2)
    flat = [torch.cat([x.flatten() for x in parts]) for parts in errors.values()]
    return torch.stack([x.mean() for x in flat]).sum()


def logits_of(model: TorchBert, examples: Examples) -> torch.Tensor:
    """Class logits [N, C]."""
    return torch.stack([model.logits(model(*one)[0]) for one in inputs(examples)])


def head_logits_of(model: TorchBert, examples: Examples) -> list[torch.Tensor]:
    """Logits of every example: [C], [marks, C] of tags, [T, 2] of spans."""
    found = [model.logits(model(*one)[0]) for one in inputs(examples)]
    if model.config.head != "tagging":
        return found
    places = np.split(examples.marks.places, examples.marks.offsets[1:-1])
    return [logits[at] for logits, at in zip(found, places, strict=True)]


def cross_entropies(head: str, logits: list, targets: list) -> torch.Tensor:
    """-sum of p log softmax(logits) of every choice [N] that a kind of head makes.

    Args:
      head: not ``regression``.
      logits: of every example, as ``head_logits_of`` has them.
      targets: what has the probabilities p: in the same shapes, of spans along the pieces.
    """
    if head == "multi_label":
        found = functional.binary_cross_entropy_with_logits
        return found(torch.cat(logits), torch.cat(targets), reduction="none")
    turned = head == "spans"
    pairs = zip(logits, targets, strict=True)
    return torch.cat(
        [
            functional.cross_entropy(*((x.T, p.T) if turned else (x, p)), reduction="none")
            for x, p in pairs
        ]
    )


def soft_loss(loss: str, head: str, mine: list, theirs: list, temperature: float) -> torch.Tensor:
    """The loss of a teacher's logits, of a kind of head."""
    if loss == "mse":
        return functional.mse_loss(torch.cat(mine), torch.cat(theirs))
    mine, theirs = ([x / temperature for x in logits] for logits in (mine, theirs))
    if loss == "dist":
        return dist(torch.cat(mine), torch.cat(theirs))
    axis = 0 if head == "spans" else -1
    p = [y.sigmoid() if head == "multi_label" else y.softmax(axis) for y in theirs]
    crossed = cross_entropies(head, mine, p)
    if loss == "kl":
        return (crossed - cross_entropies(head, theirs, p)).mean()
    return crossed.mean() / (mine[0].shape[-1] if head == "tagging" else 1)


def hard_loss(head: str, logits: list, examples: Examples) -> torch.Tensor:
    """The loss of labels, of a kind of head."""
    if head == "tagging":
        targets = torch.from_numpy(examples.marks.targets).long()
        return functional.cross_entropy(torch.cat(logits), targets)
    labels = torch.from_numpy(examples.labels)
    if head == "regression":
        return functional.mse_loss(torch.cat(logits), labels.double())
    if head == "multi_label":
        return cross_entropies(head, logits, list(labels.double())).mean()
    pairs = zip(logits, labels.long(), strict=True)
    return torch.stack([functional.cross_entropy(x.T, at) for x, at in pairs]).mean()


def dist(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Of logits [N, C] (Huang et al. 2022, section 3.3, with beta = gamma = 1)."""
    p, q = student.softmax(-1), teacher.softmax(-1)

    def apart(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        pairs = zip(x, y, strict=True)
        return torch.stack([1 - torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs]).mean()

    return apart(p, q) + apart(p.T, q.T)


def adamw_steps(
    model: TorchBert, loss: Any, count: int, multipliers: Sequence[float], rate: float
) -> list[float]:
    """Trains with torch's AdamW, decay .01, clipping to global norm 1; the losses before.

    Parameters that the loss does not reach are left alone, as torch does.
    """
    plain = [x for name, x in model.named_parameters() if "bias" in name or "LayerNorm" in name]
    decayed = [
        x for name, x in model.named_parameters() if "bias" not in name and "LayerNorm" not in name
    ]
    groups = [
        {"params": decayed, "weight_decay": 0.01},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.999), eps=1e-6)
    losses = []
    for step in range(count):
        for group in optimizer.param_groups:
            group["lr"] = rate * multipliers[step]
        optimizer.zero_grad()
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(value.detach()))
    return losses
