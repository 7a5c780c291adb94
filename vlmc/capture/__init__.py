"""From an `Arch` to its deployable graphs."""
