"""The search on recorded curves: real decisions, simulated time; start with `slots.simulate`."""
