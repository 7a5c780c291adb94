"""Building blocks of the modules: torch only."""
