"""How good is it, beside its controls? The table that sample.py prints."""

from tools.report import NAMES


def show(metrics, lines):
    """Print the table, and what it says in plain words. metrics: of metrics.json; lines: to
    follow the table."""
    summary = metrics["scores"]
    print(
        f"\n{metrics['mode']}: {metrics['scored_frames']:,} of {metrics['test_frames']:,} test "
        f"frames scored, in windows of {metrics['frames']}; {metrics['steps']} steps, eta "
        f"{metrics['eta']:g}\n"
        "mean over frames +- standard deviation over windows, in z-scores"
    )
    for region in summary["neuroframes"]:
        print(f"\n{region:34}{'MSE':>15}{'r':>17}{'cos':>17}")
        for method, name in NAMES.items():
            if method in summary:
                row = summary[method][region].values()
                cells = [f"{cell['mean']:10.3f} +- {cell['std']:.3f}" for cell in row]
                print(f"{name.format(metrics['samples']):34}" + "".join(cells))
    print("", *lines, sep="\n")
    if metrics["residual_before"] is not None:
        print(
            f"What was observed is put back: {metrics['residual_before']:.3f} (rms) off before "
            f"that, {metrics['anchor_residual']:g} after."
        )
