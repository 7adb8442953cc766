"""``python -m prunegym`` is the command ``prunegym``."""

from __future__ import annotations

from prunegym.cli import main

if __name__ == "__main__":
    main()
