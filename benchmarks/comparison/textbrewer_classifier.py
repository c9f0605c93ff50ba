"""A small classifier out of a big one, with TextBrewer. Arguments: updates a stage, seed."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from textbrewer.distiller_train import BasicTrainer
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
pad = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)


def collate(rows):
    """TextBrewer asks for a dict, and nothing derived from it."""
    return dict(pad(rows))


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


def train(trainer, model, rate, **options):
    """Makes the updates of a stage."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    sampler = RandomSampler(rows, num_samples=32 * UPDATES)
    # Cached, the weights of the first update would be those of all.
    with trainer, torch.autocast("cpu", torch.bfloat16, enabled=FAST, cache_enabled=False):
        trainer.train(
            torch.optim.AdamW(groups, lr=rate, fused=True),
            DataLoader(rows, 32, sampler=sampler, collate_fn=collate),
            num_epochs=None,
            num_steps=UPDATES,
            scheduler_class=get_linear_schedule_with_warmup,
            scheduler_args={
                "num_warmup_steps": UPDATES // 10,
                "num_training_steps": UPDATES,
            },
            max_grad_norm=1.0,
            **options,
        )
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


def config_of(stage):
    """Of a stage."""
    return TrainingConfig(ckpt_steps=UPDATES, output_dir=f"saved/{stage}", device="cpu")


def layers(batch, out):
    """What layers are compared by."""
    return {
        "hidden": out.hidden_states,
        "attention": out.attentions,
        "inputs_mask": batch["attention_mask"],
    }


def logits(batch, out):
    """What predictions are compared by."""
    return {"logits": out.logits}


rows, test = read("train.tsv"), read("test.tsv")

names = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
teacher = AutoModelForSequenceClassification.from_pretrained("teacher", **names)
trainer = BasicTrainer(config_of("teacher"), teacher, lambda batch, out: {"losses": out.loss})
train(trainer, teacher, 1e-4)

still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
student = AutoModelForSequenceClassification.from_pretrained("start", **names, **still)
widths = ["linear", student.config.hidden_size, teacher.config.hidden_size]
matches = [
    {"feature": "hidden", "loss": "hidden_mse", "layer_S": i, "layer_T": j, "weight": 1}
    | {"proj": [*widths, {"lr": 5e-4}]}
    for i, j in ((0, 0), *PAIRS)
]
matches += [
    {"feature": "attention", "loss": "attention_mse", "weight": 1}
    | {"layer_S": i - 1, "layer_T": j - 1}
    for i, j in PAIRS
]
teacher.set_attn_implementation("scores")
student.set_attn_implementation("scores")
distill = DistillationConfig(intermediate_matches=matches)
distiller = GeneralDistiller(config_of("layers"), distill, teacher, student, layers, layers)
train(distiller, student, 5e-4, output_hidden_states=True, output_attentions=True)

teacher.set_attn_implementation("sdpa")
student.set_attn_implementation("sdpa")
distill = DistillationConfig(temperature=1)
distiller = GeneralDistiller(config_of("predictions"), distill, teacher, student, logits, logits)
train(distiller, student, 1e-4)

student.save_pretrained("student")
tokenizer.save_pretrained("student")
print(f"teacher {accuracy(teacher, test):.4f} student {accuracy(student, test):.4f}")
