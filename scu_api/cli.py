"""The command line, `scu`: train an adapter under control, watch, diagnose and evaluate it.

Exit codes: 0 done, 1 the run failed, 2 bad input (nothing was started), 130 interrupted. What a
user can mend is a message on stderr, never a traceback. `--help` imports no framework: the engines
are imported inside the commands.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console

import scu
from scu.errors import ConfigError, InputError, OutputError, ScuError
from scu.trace import StepRecord, write_json
from scu_api.course import beginning
from scu_api.libraries import load_engine
from scu_api.panel import Panel
from scu_api.scorecard import print_checks, table
from scu_api.summary import controller_line, summary

if TYPE_CHECKING:
    from scu.config import RunConfig
    from scu.engines.torch_engine import Run
    from scu.evaluate import Comparison

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
DEMO = Path(scu.__file__).parent / "base" / "demo.yaml"
DEMO_MODEL = "embedded"

RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run's configuration.")]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a run, finished or not; or its trace.")
]
Adapter = Annotated[Path, typer.Argument(metavar="ADAPTER", help="Folder of a finished run.")]
Output = Annotated[
    Path | None, typer.Option(help="Folder for the adapter; default: output in RUN.yaml.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Load and check everything, train nothing.")
]
Pulse = Annotated[
    bool,
    typer.Option("--pulse", help="Measure how S answers lambda; overrides --set scu.pulse."),
]
Stop = Annotated[
    Literal["equilibrium", "guide", "never"] | None,
    typer.Option(help="What ends training before its steps are done; overrides --set scu.stop."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a run in the output folder.")]
EvalData = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Evaluation data; default: what the run held out."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]

app = typer.Typer(
    help="Train LoRA adapters with the information ratio S held at a set point.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> NoReturn:
    run_app(app)


def run_app(app: typer.Typer) -> NoReturn:
    """Run a Typer application with this project's exit codes."""
    try:
        app()
    except ScuError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(BAD_INPUT if isinstance(error, InputError) else FAILED)
    sys.exit(DONE)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"scu {scu.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def train(
    run: RunFile,
    output: Output = None,
    sets: Sets = None,
    pulse: Pulse = False,
    stop: Stop = None,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a LoRA adapter with S held at its set point."""
    flags = ["scu.pulse=true"] if pulse else []
    flags += [f"scu.stop={stop}"] if stop is not None else []
    config, folder = _load(run, output, [*(sets or []), *flags])
    raise typer.Exit(_train(config, folder, dry_run=dry_run, overwrite=overwrite))


@app.command()
def watch(
    run: RunFolder,
    once: Annotated[bool, typer.Option("--once", help="Print the panel as it stands.")] = False,
    every: Annotated[
        float, typer.Option(metavar="SEC", min=0.1, help="Seconds between two looks.")
    ] = 2.0,
) -> None:
    """Show a run as it goes, from another terminal; until it is finished, or Ctrl-C.

    Waits for the trace if the folder is there, and starts again when another run replaces it.
    """
    from scu_api.watch import watch as follow

    follow(run, _console(), once=once, every_sec=every)


@app.command()
def diagnose(run: RunFolder, as_json: AsJson = False) -> None:
    """Say what is wrong with a run and what to change; exit code 1 if something is."""
    from scu_api import examine

    wrong = examine.diagnose(run, _console(), as_json=as_json)
    raise typer.Exit(FAILED if wrong else DONE)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to; needed for several runs. Default: RUN."),
    ] = None,
) -> None:
    """Write a report of a run, or of several side by side: report.html and a picture."""
    from scu_api import examine

    for path in examine.report(runs, output):
        typer.echo(path)


@app.command("eval")
def evaluate(adapter: Adapter, data: EvalData = None, as_json: AsJson = False) -> None:
    """Compare an adapter with its base model on held-out documents."""
    _evaluate(adapter, data, as_json=as_json)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the adapter.")] = Path("runs/demo"),
    sets: Sets = None,
    overwrite: Overwrite = False,
) -> None:
    """Train and evaluate on the embedded model and data: minutes on a CPU, no network."""
    config, folder = _load(DEMO, output, sets)
    code = _train(config, folder, overwrite=overwrite or _holds_demo(folder))
    if code == DONE:
        _evaluate(folder, None)
        say = _console().print
        again = f"scu demo --set scu.target_s=0.05 --output {folder}-5-percent"
        own = f"scu train RUN.yaml  (a copy of {folder / 'config.yaml'}, with your model and data)"
        say(f"\nAnother set point:  {again}", soft_wrap=True)
        say(f"Your own run:       {own}", soft_wrap=True)
    raise typer.Exit(code)


def _load(file: Path, output: Path | None, sets: list[str] | None) -> "tuple[RunConfig, Path]":
    from scu.config_file import check_ready, load

    config = load(file, sets=sets or [], output=None if output is None else str(output))
    check_ready(config)
    if not config.output:
        raise ConfigError("no output folder; pass --output DIR, or set output in the configuration")
    return config, Path(config.output)


def _train(
    config: "RunConfig", output: Path, *, dry_run: bool = False, overwrite: bool = False
) -> int:
    engine = load_engine("torch_engine")
    console = _console()
    console.print(f"loading {config.data.train_data} and {config.model.base_model} ...")
    run: Run = engine.prepare(config, output, overwrite=overwrite)
    for note in [*run.notes, controller_line(run.callback.settings)]:
        style = "yellow" if note.startswith("WARNING") else None
        console.print(note, style=style, soft_wrap=True)
    if dry_run:
        console.print("dry run: nothing was trained")
        return DONE
    records: list[StepRecord] = []
    view = beginning(
        output,
        run.callback.settings,
        config,
        context_free_bpt=run.callback.context_free_bpt,
    )
    with Panel(console, view) as panel:

        def show(record: StepRecord) -> None:
            records.append(record)
            panel.record(record)

        try:
            metadata: dict[str, Any] = engine.train(run, on_record=show)
        except KeyboardInterrupt:  # the second Ctrl-C; the first one ends the run and saves
            typer.echo("interrupted; the adapter was not saved", err=True)
            return INTERRUPTED
    for line in summary(metadata, records, output, budget=config.training.steps):
        console.print(line, soft_wrap=True)
    if _is_main():
        from scu_api.examine import report_line

        line = report_line(output)
        style = "yellow" if line.startswith("WARNING") else None
        console.print(line, style=style, soft_wrap=True)
    return _exit_code(str(metadata["stop_reason"]))


def _exit_code(stop_reason: str) -> int:
    if stop_reason.startswith("diverged"):
        return FAILED
    return INTERRUPTED if stop_reason == "interrupted" else DONE


def _evaluate(folder: Path, data: str | None, *, as_json: bool = False) -> None:
    comparison: Comparison = load_engine("scoring").evaluate_adapter(folder, data=data)
    if not as_json:
        console = _console()
        console.print(table(comparison))
        print_checks(console, folder)
    report = folder / "eval.json"
    try:
        write_json(report, comparison.as_dict())
    except OSError as error:
        raise OutputError(f"cannot write {report}: {error}") from error
    if as_json:
        typer.echo(report.read_text(encoding="utf-8"), nl=False)


def _holds_demo(folder: Path) -> bool:
    """Whether the folder holds an earlier run of the embedded model, which a demo may replace."""
    from scu.config_file import load

    try:
        return load(folder / "config.yaml").model.base_model == DEMO_MODEL
    except InputError:
        return False


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever watched has gone (`scu train | head`); the run goes on, and is saved."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _console() -> Console:
    """Of stdout; silent in all but the first process of a distributed run."""
    return _Console(quiet=not _is_main(), markup=False, highlight=False, emoji=False)


if __name__ == "__main__":
    main()
