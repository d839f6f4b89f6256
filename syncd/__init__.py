"""syncd: pulls card keys from suppliers, keeps them encrypted, serves paid orders from the vault."""

__version__ = "0.1.0"
