"""Tokenises a corpus once, into a folder that runs train on with --config.corpus=prepared:DIR.

The same command again goes on where it was stopped; the folder is the same to the byte for any
number of workers.
"""

from __future__ import annotations

import argparse
import time

from jaxbert.errors import UserError
from jaxbert.files import local_path

HELP = "tokenise a corpus once, for many runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    parser.add_argument(
        "--corpus", required=True, help="text:GLOB, jsonl:GLOB:FIELD, ..., or a mixture"
    )
    parser.add_argument(
        "--tokenizer", required=True, help="a model reference, such as the teacher, or its folder"
    )
    parser.add_argument("--out", required=True, type=local_path, help="the folder to make")
    parser.add_argument("--workers", type=int, default=0, help="processes; one a core if not given")
    parser.add_argument("--shard-size", type=int, default=32, help="MiB of text a shard, about")
    parser.add_argument(
        "--dedup",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave out documents that are the same as an earlier one",
    )
    parser.add_argument("--data-dir", default="", help="the TFDS folder")


def run(args: argparse.Namespace) -> None:
    """Makes the folder.

    Raises:
      UserError: whatever the user can fix.
      SystemExit: with 75, when it was told to stop.
    """
    for flag, least in (("workers", 0), ("shard_size", 1)):
        if getattr(args, flag) < least:
            name = flag.replace("_", "-")
            raise UserError(f"{getattr(args, flag)}", f"flag --{name}", f"give at least {least}")
    from jaxbert.data.manifest import make_plan
    from jaxbert.data.prepare import prepare
    from jaxbert.data.progress import show_progress
    from jaxbert.data.tokenizer import load_tokenizer
    from jaxbert.interop.hub import resolve

    began = time.monotonic()
    folder = resolve(args.tokenizer)
    with show_progress() as report:
        plan = make_plan(
            args.corpus,
            load_tokenizer(folder),
            data_dir=args.data_dir,
            shard_size=args.shard_size << 20,
            dedup=args.dedup,
            report=report,
        )
        corpus = prepare(plan, folder, args.out, workers=args.workers, report=report)
    facts = corpus.manifest
    print(
        f"{facts['documents']:,} documents, {facts['pieces']:,} pieces of "
        f"{facts['text_bytes']:,} bytes; left out: {facts['empty']:,} without text, "
        f"{facts['duplicates']:,} duplicates; {time.monotonic() - began:.0f} s -> {args.out}"
    )
