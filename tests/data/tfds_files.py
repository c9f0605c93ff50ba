"""Builds small TFDS data sets in array_record for tests, as TFDS itself prepares real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def prepare(
    data_dir: Path,
    dataset: str,
    config: str,
    features: Mapping[str, Any],
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    file_format: str = "array_record",
) -> Path:
    """Writes a data set below `data_dir`; returns its folder.

    Args:
      data_dir: the TFDS folder.
      dataset: such as ``glue``.
      config: such as ``sst2``.
      features: TFDS features by name; a sequence of names is a ClassLabel, None a Text.
      splits: the examples of each split.
      file_format: how they are stored.
    """
    import tensorflow_datasets as tfds

    connectors = {
        key: tfds.features.Text() if value is None
        else tfds.features.ClassLabel(names=value) if isinstance(value, (list, tuple))
        else value
        for key, value in features.items()
    }  # fmt: skip

    with tfds.core.registered.skip_registration():

        class Local(tfds.core.GeneratorBasedBuilder):
            name = dataset
            VERSION = tfds.core.Version("1.0.0")
            BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, description="for a test")]  # noqa: RUF012

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(connectors)
                )

            def _split_generators(self, dl_manager):
                return {split: enumerate(map(dict, rows)) for split, rows in splits.items()}

            def _generate_examples(self):
                raise AssertionError("every split has its generator")

    builder = Local(config=config, data_dir=str(data_dir), file_format=file_format)
    builder.download_and_prepare()
    return Path(builder.data_dir)
