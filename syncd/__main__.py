"""`python -m syncd` and the console script."""

from __future__ import annotations

from syncd.cli.app import main

if __name__ == "__main__":
    main()
