"""The families of experiments: one file each, with its base Experiment, train, columns, table."""
