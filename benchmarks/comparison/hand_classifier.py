"""A small classifier out of a big one, with transformers. Arguments: updates a stage, seed."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, RandomSampler
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    get_linear_schedule_with_warmup,
)
from transformers.masking_utils import eager_mask

UPDATES, SEED = int(sys.argv[1]), int(sys.argv[2])
FAST = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # bfloat16
LABELS = ("negative", "positive")
PAIRS = ((1, 2), (2, 3), (3, 5), (4, 6))  # layers of student and teacher, from 1

torch.manual_seed(SEED)
tokenizer = AutoTokenizer.from_pretrained("teacher")
collate = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)


def attend(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    """Attention that gives its scores before the softmax, where transformers gives those after."""
    scores = query @ key.transpose(2, 3) * scaling
    weights = scores if attention_mask is None else scores + attention_mask
    weights = F.dropout(F.softmax(weights, dim=-1), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), scores


AttentionInterface.register("scores", attend)
AttentionMaskInterface.register("scores", eager_mask)


def read(path):
    """The rows of a file with a header."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()[1:]
    texts, labels = zip(*(line.split("\t") for line in lines), strict=True)
    encoded = tokenizer(list(texts), truncation=True, max_length=128)["input_ids"]
    return [
        {"input_ids": ids, "labels": LABELS.index(label)}
        for ids, label in zip(encoded, labels, strict=True)
    ]


def train(model, rate, loss):
    """Makes the updates of a stage."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, UPDATES // 10, UPDATES)
    sampler = RandomSampler(rows, num_samples=32 * UPDATES)
    model.train()
    for step, batch in enumerate(DataLoader(rows, 32, sampler=sampler, collate_fn=collate), 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=FAST):
            value = loss(batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(f"step {step} loss {value.item():.4f}", flush=True)
    model.eval()


@torch.no_grad()
def accuracy(model, rows):
    """The share of the rows that a model gets right."""
    right = 0
    for batch in DataLoader(rows, 64, collate_fn=collate):
        with torch.autocast("cpu", torch.bfloat16, enabled=FAST):
            said = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        right += (said.logits.argmax(-1) == batch["labels"]).sum().item()
    return right / len(rows)


def states(model, batch):
    """Hidden states and attention scores of all layers."""
    out = model.bert(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        output_hidden_states=True,
        output_attentions=True,
    )
    return out.hidden_states, out.attentions


def layer_loss(batch):
    """Of embeddings, attention and hidden states."""
    with torch.no_grad():
        their_hidden, their_scores = states(teacher, batch)
    hidden, scores = states(student, batch)
    real = batch["attention_mask"].float()  # padding teaches nothing
    pairs = (real[:, None, :, None] * real[:, None, None, :]).expand_as(scores[0])
    real = real[..., None]
    total = 0.0
    for mine, theirs in ((0, 0), *PAIRS):
        apart = projection(hidden[mine]).float() - their_hidden[theirs].float()
        total += (apart.square() * real).sum() / (real.sum() * apart.shape[-1])
        if mine:
            apart = scores[mine - 1].float() - their_scores[theirs - 1].float()
            total += (apart.square() * pairs).sum() / pairs.sum()
    return total


def prediction_loss(batch):
    """Of the classifier."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        target = teacher(**inputs).logits.float().softmax(-1)
    return -(target * student(**inputs).logits.float().log_softmax(-1)).sum(-1).mean()


rows, test = read("train.tsv"), read("test.tsv")

names = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
teacher = AutoModelForSequenceClassification.from_pretrained("teacher", **names)
train(teacher, 1e-4, lambda batch: teacher(**batch).loss)
teacher.requires_grad_(False)

still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
student = AutoModelForSequenceClassification.from_pretrained("start", **names, **still)
projection = torch.nn.Linear(student.config.hidden_size, teacher.config.hidden_size)
teacher.set_attn_implementation("scores")
student.set_attn_implementation("scores")
train(torch.nn.ModuleList([student, projection]), 5e-4, layer_loss)
teacher.set_attn_implementation("sdpa")
student.set_attn_implementation("sdpa")
train(student, 1e-4, prediction_loss)

student.save_pretrained("student")
tokenizer.save_pretrained("student")
print(f"teacher {accuracy(teacher, test):.4f} student {accuracy(student, test):.4f}")
