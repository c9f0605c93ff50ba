"""General distillation on plain text, with TextBrewer. Arguments: updates, seed."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from torch.utils.data import DataLoader, RandomSampler
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    DataCollatorWithPadding,
    get_linear_schedule_with_warmup,
)
from transformers.masking_utils import eager_mask

UPDATES, SEED = int(sys.argv[1]), int(sys.argv[2])
FAST = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # bfloat16
PAIRS = ((1, 2), (2, 3), (3, 5), (4, 6))  # layers of student and teacher, from 1
SHAPE = {"hidden_size": 312, "num_hidden_layers": 4, "intermediate_size": 1200}

torch.manual_seed(SEED)


def attend(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
    """Attention that gives its scores before the softmax, where transformers gives those after."""
    scores = query @ key.transpose(2, 3) * scaling
    weights = scores if attention_mask is None else scores + attention_mask
    weights = F.dropout(F.softmax(weights, dim=-1), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), scores


AttentionInterface.register("scores", attend)
AttentionMaskInterface.register("scores", eager_mask)


def layers(batch, out):
    """What layers are compared by."""
    return {
        "hidden": out.hidden_states,
        "attention": out.attentions,
        "inputs_mask": batch["attention_mask"],
    }


tokenizer = AutoTokenizer.from_pretrained("teacher")
texts = Path("texts.txt").read_text(encoding="utf-8").split("\n\n")
encoded = tokenizer(texts, truncation=True, max_length=128, return_overflowing_tokens=True)
rows = [{"input_ids": ids} for ids in encoded["input_ids"]]
pad = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)

teacher = AutoModel.from_pretrained("teacher", attn_implementation="scores")
config = BertConfig(**SHAPE, vocab_size=teacher.config.vocab_size)
config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
student = BertModel(config)
student.set_attn_implementation("scores")

widths = ["linear", config.hidden_size, teacher.config.hidden_size]
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
groups = [
    {"params": [p for p in student.parameters() if p.ndim > 1], "weight_decay": 0.01},
    {"params": [p for p in student.parameters() if p.ndim == 1], "weight_decay": 0.0},
]
distiller = GeneralDistiller(
    TrainingConfig(ckpt_steps=UPDATES, output_dir="saved/general", device="cpu"),
    DistillationConfig(intermediate_matches=matches),
    teacher,
    student,
    layers,
    layers,
)
sampler = RandomSampler(rows, num_samples=32 * UPDATES)
# Cached, the weights of the first update would be those of all.
with distiller, torch.autocast("cpu", torch.bfloat16, enabled=FAST, cache_enabled=False):
    distiller.train(
        torch.optim.AdamW(groups, lr=5e-4, fused=True),
        # A dict, and nothing derived from it, is what TextBrewer asks for.
        DataLoader(rows, 32, sampler=sampler, collate_fn=lambda rows: dict(pad(rows))),
        num_steps=UPDATES,
        scheduler_class=get_linear_schedule_with_warmup,
        scheduler_args={"num_warmup_steps": UPDATES // 10, "num_training_steps": UPDATES},
        max_grad_norm=1.0,
        output_hidden_states=True,
        output_attentions=True,
    )

student.save_pretrained("general_student")
tokenizer.save_pretrained("general_student")
