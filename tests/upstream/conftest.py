"""Prints what came out of the common tests, by state."""

from collections import Counter

COLUMNS = {
    "passed": ("passed",),
    "skipped as the stock twin": ("skipped", "skipped"),
    "failed as the stock twin": ("failed", "failed"),
    "skipped, the twin not": ("skipped", "passed"),
    "failed, the twin not": ("failed", "passed"),
    "failed, the twin skipped": ("failed", "skipped"),
}


def pytest_terminal_summary(terminalreporter):
    """Counts per state: reports carry them here from the processes of xdist, too."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    properties = [pair for report in reports for pair in report.user_properties]
    outcomes = [value for key, value in properties if key == "upstream"]
    counts = Counter((case.split("-")[1], ours, twin) for case, ours, twin in outcomes)
    if not counts:
        return
    terminalreporter.section("transformers' common tests")
    for state in sorted({state for state, _, _ in counts}):
        row = [f"{state:8}"]
        for title, kinds in COLUMNS.items():
            number = sum(count for key, count in counts.items() if key[0] == state and key[1 : 1 + len(kinds)] == kinds)
            row.append(f"{title}: {number}")
        terminalreporter.write_line("  ".join(row))
    meant = [value for key, value in properties if key == "meant"]
    terminalreporter.write_line(f"of these differences {len(meant)} are meant: {', '.join(meant) or 'none'}")
