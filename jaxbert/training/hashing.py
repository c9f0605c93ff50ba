"""Hashes of parameters: of a whole tree, and of a leaf."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import xxhash

from jaxbert.training.optimizer import path_name

ALGORITHM = "xxh3_128"  # of a checkpoint's leaves


def named_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """(path, leaf) of a tree, sorted by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = [(path_name(path), leaf) for path, leaf in leaves]
    yield from sorted(named, key=lambda pair: pair[0])


def parameter_hash(tree: Any) -> str:
    """SHA-256 over the path-sorted leaves: path, dtype, global shape, little-endian C-order bytes.

    Independent of how the leaves are sharded.
    """
    digest = hashlib.sha256()
    for name, leaf in named_leaves(tree):
        _add(digest, name, np.asarray(jax.device_get(leaf)))
    return digest.hexdigest()


def leaf_hash(name: str, leaf: np.ndarray) -> str:
    """XXH3-128 over what ``parameter_hash`` takes of one leaf.

    It finds what befalls a disk, at the speed of memory. It holds off nobody who means harm: who
    can write a leaf can write its hash, too.
    """
    digest = xxhash.xxh3_128()
    _add(digest, name, leaf)
    return digest.hexdigest()


def _add(digest: Any, name: str, array: np.ndarray) -> None:
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    digest.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))  # any dtype, no copy
