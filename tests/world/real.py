"""A daemon as it is, but for leases that end soon: whoever is killed every other second cannot wait a minute each time.

PLANTED names a bug of `bugs`, for the negative control; the rest is the command line's.
"""

from __future__ import annotations

import os

import pytest

from syncd.cli.app import main
from syncd.inventory import ledger, purchase
from tests.world import bugs

if __name__ == "__main__":
    ledger.LEASE_S, purchase._RENEW_S = 3.0, 1.0
    if "PLANTED" in os.environ:
        getattr(bugs, os.environ["PLANTED"])(pytest.MonkeyPatch())
    main()
