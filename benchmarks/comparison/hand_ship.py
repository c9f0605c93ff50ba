"""The student of hand_classifier.py to ONNX and int8, both held against it on the dev rows."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import quantize_dynamic
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("student").eval()
tokenizer = AutoTokenizer.from_pretrained("student")
lines = Path("dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
texts, names = zip(*(line.split("\t") for line in lines), strict=True)
labels = np.array([model.config.label2id[name] for name in names])
batches = [
    dict(tokenizer(list(texts[at : at + 64]), padding=True, truncation=True, return_tensors="pt"))
    for at in range(0, len(texts), 64)
]

Path("onnx").mkdir(exist_ok=True)
free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
torch.onnx.export(
    model,
    kwargs=batches[0],
    f="onnx/model.onnx",
    dynamo=True,
    external_data=False,
    dynamic_shapes=dict.fromkeys(batches[0], free),
    output_names=["logits"],
)
quantize_dynamic("onnx/model.onnx", "onnx/model_quantized.onnx")

with torch.no_grad():
    expected = np.concatenate([model(**batch).logits.numpy() for batch in batches])
before = (expected.argmax(-1) == labels).mean()
print(f"original: accuracy {before:.4f}")
for name in ("model", "model_quantized"):
    session = onnxruntime.InferenceSession(f"onnx/{name}.onnx")
    inputs = [{key: value.numpy() for key, value in batch.items()} for batch in batches]
    found = np.concatenate([session.run(["logits"], each)[0] for each in inputs])
    after, apart = (found.argmax(-1) == labels).mean(), np.abs(found - expected).max()
    print(f"{name}: accuracy {after:.4f}, lost {before - after:.4f}, difference {apart:.2e}")
    if name == "model" and apart > 1e-4:
        raise SystemExit("the exported model says something else")
