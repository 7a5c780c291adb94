"""Weight-name tables, a data file for each `model_type`: see `vlmc.builder.naming`."""
