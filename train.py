"""Trains the phases of a recipe: ``python train.py --config=configs/NAME.py --workdir=DIR``.

The command ``jaxbert train``, as a script of the checkout.
"""

from jaxbert.cli.main import run_script

if __name__ == "__main__":
    run_script("train")
