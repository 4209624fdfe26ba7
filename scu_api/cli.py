"""The command line, `scu`: train an adapter under control, evaluate it, see both in a demo.

Exit codes: 0 done, 1 the run failed, 2 bad input (nothing was started), 130 interrupted. What a
user can mend is a message on stderr, never a traceback. `--help` imports no framework: the engines
are imported inside the commands.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

import scu
from scu.control import STOP_TOLERANCE, ControlSettings
from scu.errors import ConfigError, InputError, OutputError, ScuError
from scu.trace import StepRecord, write_json
from scu_api.panel import Panel, duration, number, percent
from scu_api.scorecard import print_checks, table

if TYPE_CHECKING:
    from scu.config import RunConfig
    from scu.engines.torch_engine import Run
    from scu.evaluate import Comparison

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
DEMO = Path(scu.__file__).parent / "base" / "demo.yaml"
DEMO_MODEL = "embedded"
LIBRARIES = r"(torch|transformers|trl|peft|accelerate|datasets|huggingface_hub|bitsandbytes)(\.|$)"

RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run's configuration.")]
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
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a LoRA adapter with S held at its set point."""
    config, folder = _load(run, output, sets)
    raise typer.Exit(_train(config, folder, dry_run=dry_run, overwrite=overwrite))


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
    engine = _engine("torch_engine")
    console = _console()
    console.print(f"loading {config.data.train_data} and {config.model.base_model} ...")
    run: Run = engine.prepare(config, output, overwrite=overwrite)
    for note in [*run.notes, _controller_line(run.callback.settings)]:
        style = "yellow" if note.startswith("WARNING") else None
        console.print(note, style=style, soft_wrap=True)
    if dry_run:
        console.print("dry run: nothing was trained")
        return DONE
    records: list[StepRecord] = []
    with Panel(console, settings=run.callback.settings, steps=config.training.steps) as panel:

        def show(record: StepRecord) -> None:
            records.append(record)
            panel.record(record)

        try:
            metadata: dict[str, Any] = engine.train(run, on_record=show)
        except KeyboardInterrupt:  # the second Ctrl-C; the first one ends the run and saves
            typer.echo("interrupted; the adapter was not saved", err=True)
            return INTERRUPTED
    for line in _summary(metadata, records, output):
        console.print(line, soft_wrap=True)
    return _exit_code(str(metadata["stop_reason"]))


def _exit_code(stop_reason: str) -> int:
    if stop_reason.startswith("diverged"):
        return FAILED
    return INTERRUPTED if stop_reason == "interrupted" else DONE


def _controller_line(settings: ControlSettings) -> str:
    deadband = f"deadband {settings.deadband:.3%}"
    if settings.effective_deadband < settings.deadband:
        deadband = (
            f"deadband {settings.effective_deadband:.3%} (narrowed from {settings.deadband:.3%}: "
            f"half of the {STOP_TOLERANCE:.0%} of S* that count as on target)"
        )
    return (
        f"controller: S* = {percent(settings.target_s)}, kp {settings.kp:g} and ki {settings.ki:g} "
        f"per window of {settings.control_interval} steps, {deadband}, "
        f"lambda from {settings.lambda_init:g} within [{settings.lambda_min:g}, "
        f"{settings.lambda_max:g}]"
    )


def _summary(metadata: dict[str, Any], records: list[StepRecord], output: Path) -> Iterator[str]:
    low, high = metadata["lambda_range"]
    s, target = metadata["final_s_ratio"], metadata["target_s"]
    off = "" if s is None else f" ({s / target - 1.0:+.1%})"
    yield ""
    yield f"stopped   {metadata['stop_reason']}, after {duration(metadata['duration_sec'])}"
    yield f"S         {percent(s)}, S* = {percent(target)}{off}"
    yield f"lambda    {number(metadata['final_lambda'])}, was in [{number(low)}, {number(high)}]"
    if records:
        first, last = records[0].data_bpt, records[-1].data_bpt
        yield f"DataBPT   {number(first)} -> {number(last)} bits/token, in training"
    yield f"adapter   {output}"


def _evaluate(folder: Path, data: str | None, *, as_json: bool = False) -> None:
    comparison: Comparison = _engine("scoring").evaluate_adapter(folder, data=data)
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


def _engine(name: str) -> Any:
    """A module of scu.engines; one error with the way out where its libraries are missing."""
    _quiet_libraries()
    try:
        return import_module(f"scu.engines.{name}")
    except ModuleNotFoundError as error:
        package = (error.name or "scu").partition(".")[0]
        if package == "scu":
            raise
        raise InputError(
            f"{package} is not installed; run pip install 'shannon-control-unit[torch]'"
        ) from error


def _quiet_libraries() -> None:
    """Keep the libraries' progress bars, notices and deprecations off the terminal; errors stay.

    Before they are imported, for they read their environment then. What the user set is kept.
    """
    for name, value in {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "DATASETS_VERBOSITY": "error",
        "HF_HUB_VERBOSITY": "error",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for category in (FutureWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=LIBRARIES)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever watched has gone (`scu train | head`); the run goes on, and is saved."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _console() -> Console:
    """Of stdout; silent in all but the first process of a distributed run."""
    quiet = os.environ.get("RANK", "0") != "0"
    return _Console(quiet=quiet, markup=False, highlight=False, emoji=False)


if __name__ == "__main__":
    main()
