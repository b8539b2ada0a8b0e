"""``taskatlas report``."""

from pathlib import Path

from cyclopts import App

from taskatlas.cli.options import DEFAULTS, Common, emit

app = App(name="report", help_epilogue="Example:\n\n    taskatlas report atlas")


@app.default
def report(folder: Path, *, common: Common = DEFAULTS) -> None:
    """Join a folder's results in one self-contained atlas.html.

    Args:
        folder: Where other commands wrote: map, select, transfer, trace.
    """
    from taskatlas.report import write_report

    path = write_report(folder, common.out)
    emit(common, {"report": path}, [f"wrote {path}"])
