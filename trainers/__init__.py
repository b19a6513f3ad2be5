"""The presets: one file per family, with its base Experiment, objectives and table."""
