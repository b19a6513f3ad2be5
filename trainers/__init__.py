"""The families of experiments: one file each, with its base Experiment, objectives and table."""
