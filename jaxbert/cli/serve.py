"""Serves an exported model over HTTP: POST /predict {"texts": [...]}, GET /health.

jaxbert export runs/task --to=shipped --format=onnx,onnx-int8
jaxbert serve shipped --port=8000
"""

from __future__ import annotations

import argparse
import signal

from jaxbert.errors import UserError
from jaxbert.files import local_path

HELP = "serve an exported model over HTTP"
OWN_SIGNALS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("folder", type=local_path, help="what jaxbert export wrote, with onnx")
    parser.add_argument("--host", default="127.0.0.1", help="an address of this machine")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--int8", action="store_true", help="ask the quantised model")
    parser.add_argument("--threads", type=int, default=0, help="of one operator; 0 = all cores")
    parser.add_argument("--max_batch", type=int, default=32, help="texts answered together")
    parser.add_argument("--max_wait", type=float, default=5.0, help="milliseconds for company")
    parser.add_argument("--max_waiting", type=int, default=4096, help="texts that may wait")


def run(args: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      UserError: what the user can fix.
    """
    if min(args.max_batch, args.max_waiting) < 1 or args.max_wait < 0 or args.threads < 0:
        where = "flags --max_batch, --max_waiting, --max_wait and --threads"
        raise UserError("a limit that lets nothing through", where, "give positive ones")
    try:
        from jaxbert.service import OnnxModel, make_app, serve
    except ImportError as error:
        fix = 'pip install "jaxbert[serve]"'
        raise UserError(f"{error.name} is not installed", "jaxbert serve", fix) from error
    model = OnnxModel(args.folder, quantized=args.int8, threads=args.threads)
    app = make_app(model, most=args.max_batch, wait=args.max_wait / 1e3, room=args.max_waiting)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what the server does not take
    serve(app, args.host, args.port)
