"""Writes a model in the formats that others read, each read back and compared first.

jaxbert export runs/task --to=shipped --format=huggingface,tinybert,onnx,onnx-int8,stablehlo
"""

from __future__ import annotations

import argparse

from jaxbert.files import local_path, size_text

HELP = "a model as a Hugging Face folder, in TinyBERT's layout, ONNX, int8 or StableHLO"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("model", metavar="RUN", help="a run's workdir, or a model reference")
    parser.add_argument("--to", type=local_path, required=True, help="the folder to write")
    parser.add_argument(
        "--format",
        default="huggingface",
        help="some of huggingface,tinybert,onnx,onnx-int8,stablehlo; tinybert keeps projections",
    )
    parser.add_argument(
        "--max_loss", type=float, default=0.01, help="of the metric, what int8 may cost"
    )
    parser.add_argument("--force", action="store_true", help="write int8 whatever it costs")
    parser.add_argument("--license", default="", help="of the model, for its card")
    parser.add_argument(
        "--seeds",
        nargs="+",
        default=[],
        metavar="RUN",
        help="evaluated runs that differ from RUN in their seed alone, for the card",
    )


def run(args: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      UserError: what the user can fix; nothing is written then.
    """
    formats = tuple(filter(None, args.format.split(",")))
    from jaxbert.export import FILES, export  # imports jax

    found = export(
        args.model,
        args.to,
        formats,
        max_loss=args.max_loss,
        force=args.force,
        license=args.license,
        seeds=args.seeds,
    )
    for name, measured in found["formats"].items():
        said = f"{args.to / FILES[name]}: {size_text(measured['bytes'])}"
        if "difference" in measured:
            said += f", within {measured['difference']:.1e} on {measured['rows']} rows"
        if measured.get("metric"):
            said += f", {measured['metric']} {measured['before']:.4f} -> {measured['after']:.4f}"
            said += f" on {measured['rows']} rows"
        print(said, flush=True)
