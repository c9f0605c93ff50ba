"""How the process gets its memory from Linux, and gives it back."""

from __future__ import annotations

import ctypes
import os
import sys

_TUNABLE = "glibc.malloc.hugetlb"


def use_huge_pages() -> None:
    """Starts this command again with large allocations on pages of 2 MB instead of 4 kB.

    XLA's CPU backend allocates what a step needs anew at every step: hundreds of thousands of page
    faults. The C library reads its tunables when a program starts, so that the way there is to
    start once more, under the same process id. Does nothing where that was done, where the user
    set the tunable, and on other systems than Linux; C libraries that do not know it pass it over.
    """
    set_ones = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and _TUNABLE not in set_ones:
        os.environ["GLIBC_TUNABLES"] = f"{set_ones}:{_TUNABLE}=1".lstrip(":")
        os.execv(sys.executable, sys.orig_argv)


def give_back() -> None:
    """Gives memory that is free within the C library back to the system.

    XLA's compiler leaves hundreds of megabytes of it behind. Does nothing where the C library is
    not glibc.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
