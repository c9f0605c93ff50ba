"""General distillation on plain text, with transformers. Arguments: updates, seed."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
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


def loss(batch):
    """Of embeddings, attention and hidden states."""
    inputs = {"output_hidden_states": True, "output_attentions": True, **batch}
    with torch.no_grad():
        theirs = teacher(**inputs)
    mine = student(**inputs)
    real = batch["attention_mask"].float()  # padding teaches nothing
    pairs = (real[:, None, :, None] * real[:, None, None, :]).expand_as(mine.attentions[0])
    real = real[..., None]
    total = 0.0
    for i, j in ((0, 0), *PAIRS):
        apart = projection(mine.hidden_states[i]).float() - theirs.hidden_states[j].float()
        total += (apart.square() * real).sum() / (real.sum() * apart.shape[-1])
        if i:
            apart = mine.attentions[i - 1].float() - theirs.attentions[j - 1].float()
            total += (apart.square() * pairs).sum() / pairs.sum()
    return total


tokenizer = AutoTokenizer.from_pretrained("teacher")
texts = Path("texts.txt").read_text(encoding="utf-8").split("\n\n")
encoded = tokenizer(texts, truncation=True, max_length=128, return_overflowing_tokens=True)
rows = [{"input_ids": ids} for ids in encoded["input_ids"]]

teacher = AutoModel.from_pretrained("teacher", attn_implementation="scores").eval()
teacher.requires_grad_(False)
config = BertConfig(**SHAPE, vocab_size=teacher.config.vocab_size)
config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
student = BertModel(config)
student.set_attn_implementation("scores")
projection = torch.nn.Linear(config.hidden_size, teacher.config.hidden_size)

model = torch.nn.ModuleList([student, projection])
groups = [
    {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
    {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
]
optimizer = torch.optim.AdamW(groups, lr=5e-4, fused=True)
schedule = get_linear_schedule_with_warmup(optimizer, UPDATES // 10, UPDATES)
sampler = RandomSampler(rows, num_samples=32 * UPDATES)
collate = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)
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

student.save_pretrained("general_student")
tokenizer.save_pretrained("general_student")
