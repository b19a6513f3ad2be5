"""Which technique pays, decided by one study. Start at `policy`, which decides what to run next.

policy ─▶ study (a sweep's proposals) ─▶ … trials … ─▶ alone (times) ─▶ judgement ─▶ recommended
"""
