"""Pages as Chromium shows them, where there is one."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
needed = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


def screenshot(page: Path, png: Path, *, width: int, height: int, dark: bool = False) -> None:
    """Writes what a page looks like, of a reader who prefers light or dark."""
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
    flags += ("--disable-background-networking", "--disable-component-update", "--disable-sync")
    flags += (f"--window-size={width},{height}", "--virtual-time-budget=4000")
    flags += (f"--blink-settings=preferredColorScheme={0 if dark else 1}",)
    with tempfile.TemporaryDirectory() as profile:  # a new one: pages keep what a reader chose
        flags += (f"--user-data-dir={profile}", f"--screenshot={png}")
        command = [str(CHROMIUM), *flags, page.as_uri()]
        subprocess.run(command, capture_output=True, check=True, timeout=300)


def colors(png: Path) -> set[tuple[int, int, int]]:
    """The colours of a picture."""
    from PIL import Image  # comes with matplotlib

    with Image.open(png) as image:
        return {color for _, color in image.convert("RGB").getcolors(1 << 24)}


def contrast(png: Path) -> np.ndarray:
    """Of each pixel [H, W] the contrast to the page, its first pixel, as WCAG 2 has it; 1 to 21.

    Negative where the pixel is the darker one.
    """
    from PIL import Image

    with Image.open(png) as image:
        share = np.asarray(image.convert("RGB")) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    light = linear @ np.array((0.2126, 0.7152, 0.0722)) + 0.05
    return np.where(light < light[0, 0], -light[0, 0] / light, light / light[0, 0])
