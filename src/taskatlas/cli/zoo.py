"""``taskatlas zoo ls``."""

from typing import Annotated

from cyclopts import App, Parameter

from taskatlas.cli.options import DEFAULTS, Common, counted, emit, table

app = App(
    name="ls", help_epilogue="Examples:\n\n    taskatlas zoo ls zoo/\n    taskatlas zoo ls zoo/zoo.yaml --format json"
)


@app.default
def ls(
    zoo: str,
    *,
    builder: str | None = None,
    digests: Annotated[bool | None, Parameter(negative="--no-digests")] = None,
    common: Common = DEFAULTS,
) -> None:
    """List what a zoo holds, without reading weights.

    Args:
        zoo: Folder of checkpoints, or its zoo.yaml.
        builder: For checkpoints that name none: transformers, timm:NAME, torchvision:NAME,
            module.path:function, file.py:function.
        digests: Say each checkpoint's digest too, which reads every file once. On for JSON, off for people.
    """
    from taskatlas.engine import track
    from taskatlas.zoo import Zoo

    opened = Zoo.open(zoo, builder=builder)
    wanted = common.format == "json" if digests is None else digests
    rows = [
        {
            "name": one.name,
            "builder": one.builder if one.builder is None or isinstance(one.builder, str) else repr(one.builder),
            "task": one.task,
            "parameters": one.parameters,
            "digest": one.digest if wanted else None,
        }
        for one in track(list(opened.values()), "reading")
    ]
    columns = ["name", "builder", "task", "parameters", *(["digest"] if wanted else [])]
    cells = [[row[column] if column != "digest" else str(row[column])[:12] for column in columns] for row in rows]
    emit(common, {"checkpoints": rows}, [table(f"{counted(len(rows), 'checkpoint')} in {zoo}", columns, cells)])
