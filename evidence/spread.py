"""Is the reconstruction as sure as it may be? calibration.py's numbers, in words."""


def verdict(found):
    """In a word, of a summary. About right: 50% within 3 points, 90% within 2, and spread over
    error from 0.9 to 1.1. Of the wrong shape: some say too narrow, others too wide."""
    off = [
        (found["coverage_50"] - 0.5) / 0.03,
        (found["coverage_90"] - 0.9) / 0.02,
        (found["spread_to_error"] - 1) / 0.1,
    ]
    if min(off) < -1 and max(off) > 1:
        return "of the wrong shape"
    if min(off) < -1:
        return "too narrow"
    return "too wide" if max(off) > 1 else "about right"


def told(summary):
    """Lines: a table, and a verdict on its last row. None without samples."""
    if not summary:
        return []
    title = "spread of the samples"
    lines = [f"\n{title:38}{'in 50%':>9}{'in 90%':>9}{'CRPS':>8}{'spread / error':>16}"]
    for name, found in summary.items():
        lines.append(
            f"{name:38}{found['coverage_50']:9.1%}{found['coverage_90']:9.1%}"
            f"{found['crps']:8.3f}{found['spread_to_error']:16.2f}"
        )
    lines.append(
        f"The 90% intervals ({name}) hold the truth in {found['coverage_90']:.0%} of cases, "
        f"the 50% intervals in {found['coverage_50']:.0%}, and the spread is "
        f"{found['spread_to_error']:.2f} times the error: they are {verdict(found)}."
    )
    return lines
