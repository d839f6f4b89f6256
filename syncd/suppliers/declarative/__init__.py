"""Adapters without code: a TOML file that says what a supplier's protocol says becomes an `Adapter`.

The vocabulary is closed (`words`), what is selected is JMESPath, what is filled in is a placeholder (`texts`); there is
no logic. Called by `registry`. docs/declarative.md is the reference.
"""

from syncd.suppliers.declarative.loading import load

__all__ = ["load"]
