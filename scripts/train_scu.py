"""Step 7 of the scaling guide, `scu train` under the guide's name:

python scripts/train_scu.py --config configs/my_model_scu.yaml --output adapters/my_adapter
"""

from pathlib import Path
from typing import Annotated

import typer

from scu_api import cli

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def train_scu(
    config: Annotated[Path, typer.Option(help="The run's configuration.")],
    output: cli.Output = None,
    sets: cli.Sets = None,
    pulse: cli.Pulse = False,
    stop: cli.Stop = None,
    dry_run: cli.DryRun = False,
    overwrite: cli.Overwrite = False,
) -> None:
    """Train a LoRA adapter with S held at its set point."""
    cli.train(config, output, sets, pulse, stop, dry_run, overwrite)


if __name__ == "__main__":
    cli.run_app(app)
