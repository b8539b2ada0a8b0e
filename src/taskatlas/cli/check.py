"""``taskatlas check``."""

import sys
from pathlib import Path

from cyclopts import App

from taskatlas.cli.options import DEFAULTS, Common, emit

app = App(name="check", help_epilogue="Example:\n\n    taskatlas check atlas")


@app.default
def check(folder: Path, *, common: Common = DEFAULTS) -> None:
    """Verify that a folder's receipts still hold: files unchanged, sources unchanged. Exit status 1 where one does not.

    Args:
        folder: Where a command wrote.
    """
    from taskatlas.store import check_receipts

    checked, failed = check_receipts(folder)
    verdict = f"receipts checked: {checked}, problems: {len(failed)}"
    emit(common, {"checked": checked, "failed": failed}, [*failed, verdict])
    if failed:
        sys.exit(1)
