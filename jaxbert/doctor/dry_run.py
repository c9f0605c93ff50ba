"""``train.py --dry-run``: what a run would be, of shapes alone."""

from __future__ import annotations

import json
from pathlib import Path

import jax

from jaxbert.config import RunConfig
from jaxbert.doctor.forecast import BASIS, COLUMNS, Forecast, describe_phase, describe_total
from jaxbert.errors import UserError, UserErrors, warn
from jaxbert.run import Run, settled
from jaxbert.workdir import check_claim


def dry_run(config: RunConfig, workdir: Path) -> None:
    """Prints the resolved config, its phases and what they need; compiles and writes nothing.

    Args:
      config: checked.
      workdir: the run's folder; need not be there.

    Raises:
      UserErrors: everything for which the run would be refused, as far as shapes and data tell.
    """
    config = settled(config, workdir)
    print(json.dumps(config.to_dict(), indent=2))
    job = Run(config, workdir)
    errors = job.inspection.problems(make=False)
    try:
        check_claim(workdir, config)
    except UserError as error:
        errors.append(error)
    if errors:
        raise UserErrors(errors)
    for doubt in job.inspection.doubts():
        warn(doubt.line)
    for name, section in config.sections.items():
        if job.skips(section):
            print(f"phase {name}: skipped, the given teacher has a classifier already")
    phases = list(Forecast(job, compiles=False).phases())
    for phase in phases:
        name, *values = describe_phase(phase)
        pairs = zip(COLUMNS[1:], values, strict=True)
        print(f"phase {name}: " + ", ".join(f"{key} {value}" for key, value in pairs))
    print(f"estimated: {BASIS}")
    said = "minutes are at the rate of NumPy's products here, which training does not reach"
    if jax.default_backend() != "cpu":
        said = "minutes are not known without"
    print(f"nothing was compiled or written; {said}: jaxbert doctor times a layer")
    print(describe_total(phases, "at least"))
