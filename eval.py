"""Evaluates a finished run: ``python eval.py --workdir=runs/task``.

The command ``jaxbert eval``, as a script of the checkout.
"""

from jaxbert.cli.main import run_script

if __name__ == "__main__":
    run_script("eval")
