"""Makes `bench`, which lies beside `tests` and is no part of the package, importable."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
