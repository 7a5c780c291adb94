"""Weight-name tables, one data file for each `model_type` of config.json; see `vlmc.build.naming`."""
