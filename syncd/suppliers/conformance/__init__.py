"""The conformance kit: proves, from documented exchanges, that an adapter is safe with money, stock and secrets."""
