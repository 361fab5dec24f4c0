"""Finds the local files that a data set's `path:` names, for the configuration and for the job that reads them."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from softtok.errors import UserError


def local_files(named: str | list[str], root: str | Path | None) -> list[Path]:
    """Returns the files of a name, a pattern or a list of these below `root`, each name's in order.

    A name that is a file is that file, even if it looks like a pattern (`a[1].csv`); brackets in the path of `root` are
    no pattern. Raises UserError if there is no such file.
    """
    paths: list[Path] = []
    for name in [named] if isinstance(named, str) else named:
        folder, given = str(root or "."), os.path.expanduser(name)
        path, pattern = os.path.join(folder, given), os.path.join(glob.escape(folder), given)
        files = [path] if os.path.isfile(path) else sorted(filter(os.path.isfile, glob.glob(pattern)))
        if not files:
            raise UserError(f"no file {name!r} in {root or 'the working folder'}")
        paths += map(Path, files)
    return paths
