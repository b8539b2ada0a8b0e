"""``taskatlas demo``."""

from pathlib import Path

from cyclopts import App

from taskatlas.cli.options import DEFAULTS, Common, emit

app = App(name="demo", help_epilogue="Examples:\n\n    taskatlas demo\n    taskatlas demo --out tour --quick")


@app.default
def demo(*, quick: bool = False, common: Common = DEFAULTS) -> None:
    """Run the whole tour on scikit-learn's handwritten digits: train, map, pick, test the picks, trace trainings.

    Args:
        quick: A smaller zoo and fewer epochs: half a minute.
    """
    from taskatlas.demo import run_demo

    result = run_demo(common.out or Path("demo"), quick=quick, seed=common.seed, engine=common.engine)
    emit(common, result.document, result.lines)
