"""Step 8 of the scaling guide, `scu eval` under the guide's name:

python scripts/eval_quality.py --adapter adapters/my_adapter
"""

from pathlib import Path
from typing import Annotated

import typer

from scu_api import cli

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def eval_quality(
    adapter: Annotated[Path, typer.Option(help="Folder of a finished run.")],
    data: cli.EvalData = None,
    as_json: cli.AsJson = False,
) -> None:
    """Compare an adapter with its base model on held-out documents."""
    cli.evaluate(adapter, data, as_json)


if __name__ == "__main__":
    cli.run_app(app)
