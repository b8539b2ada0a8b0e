"""The command line: one executable, ``taskatlas``; a command parses, calls one public function, prints.

Commands are named here and imported when they run, so that help and bad usage answer at once.
"""

import atexit
import gc
import os
import sys
from collections.abc import Sequence

from cyclopts import App, ArgumentCollection
from cyclopts.config import Toml
from cyclopts.exceptions import CycloptsError

from taskatlas.errors import BadInput, TaskAtlasError

_MAIN_EXAMPLES = """Examples:

    taskatlas demo --out demo
    taskatlas map zoo/ --probe photos/ --out atlas
    taskatlas select atlas -k 5 --out atlas
    taskatlas trace runs/ --out atlas
    taskatlas report atlas
"""

_DEFAULTS_FILE = Toml("taskatlas.toml")


def _defaults(here: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fills in what ``taskatlas.toml`` says, where the command runs in a folder that has one."""
    try:
        _ = _DEFAULTS_FILE.config
    except (CycloptsError, TypeError) as error:  # cyclopts stumbles over an OSError, whose first argument is a number
        reason = error.__cause__ or error.__context__ or error
        message = f"{_DEFAULTS_FILE.source} cannot be read as TOML: {reason}. Correct it or remove it."
        raise CycloptsError(msg=message) from error
    _DEFAULTS_FILE(here, commands, arguments)


app = App(
    name="taskatlas",
    help="Turn a pile of PyTorch checkpoints into a map you can act on.",
    help_epilogue=_MAIN_EXAMPLES,
    help_format="plaintext",
    config=_defaults,
    suppress_keyboard_interrupt=False,  # main says what becomes of what was done
)
_zoo = App(name="zoo", help="Look at a zoo of checkpoints.", help_epilogue="Example:\n\n    taskatlas zoo ls zoo/")
app.command("taskatlas.cli.demo:app", name="demo", help="Run the whole tour on handwritten digits.")
app.command(_zoo)
_zoo.command("taskatlas.cli.zoo:app", name="ls", help="List what a zoo holds.")
app.command("taskatlas.cli.map:app", name="map", help="Measure how a zoo's tasks relate: kernel, tree, heat map.")
app.command("taskatlas.cli.select:app", name="select", help="Pick the few checkpoints that cover the rest.")
app.command("taskatlas.cli.transfer:app", name="transfer", help="Say what a selection is worth on an unseen task.")
app.command("taskatlas.cli.train:app", name="train", help="Train one network, of any size, and record its way.")
app.command("taskatlas.cli.record:app", name="record", help="Turn a past training's checkpoints into a run.")
app.command("taskatlas.cli.trace:app", name="trace", help="Draw how trainings moved through prediction space.")
app.command("taskatlas.cli.agree:app", name="agree", help="Score tasks: do networks trained apart agree on them?")
app.command("taskatlas.cli.discover:app", name="discover", help="Find the tasks that networks generalise on.")
app.command("taskatlas.cli.split:app", name="split", help="Make train/test splits that break a network.")
app.command("taskatlas.cli.merge:app", name="merge", help="Merge models by a recipe, in mergekit's YAML.")
app.command("taskatlas.cli.zip_points:app", name="zip-points", help="List up to where networks can be zipped.")
app.command("taskatlas.cli.evaluate:app", name="evaluate", help="Score models on labelled tasks.")
app.command("taskatlas.cli.report:app", name="report", help="Join a folder's results in one atlas.html.")
app.command("taskatlas.cli.check:app", name="check", help="Verify that a folder's receipts still hold.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and exits: 0 done, 1 the work failed, 2 bad usage or bad input."""
    atexit.register(gc.freeze)  # else Python looks for garbage in all of torch before it ends: a third of a second
    try:
        app(arguments, exit_on_error=False, print_error=True)
    except CycloptsError:
        sys.exit(2)
    except TaskAtlasError as error:
        _tell(str(error))
        sys.exit(2 if isinstance(error, BadInput) else 1)
    except KeyboardInterrupt:
        _tell("stopped; what was finished is kept, and running again goes on from there.")
        sys.exit(130)
    except BrokenPipeError:  # the reader of standard output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _tell(message: str) -> None:
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]taskatlas:[/] {_escaped(message)}")


def _escaped(message: str) -> str:
    from rich.markup import escape

    return escape(message)
