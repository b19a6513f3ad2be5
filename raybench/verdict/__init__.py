"""Which technique pays, from one study: the way in is `policy`, which says what to run next.

policy ─▶ study (a sweep's proposals) ─▶ … trials … ─▶ alone (times) ─▶ judgement ─▶ recommended
"""
