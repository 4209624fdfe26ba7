"""Run configurations as YAML: read with every problem found, written with every source named.

    config = load(Path("run.yaml"), sets=["scu.kp=0.5"], output="adapters/mine")

Null means "not given". All problems of a file come out at once, in one ConfigError, one line each.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from reprlib import repr as short
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from scu.config import FIELDS, NAMES, SECTIONS, From, RunConfig, kinds_of
from scu.errors import ConfigError

_LAMBDAS = {"scu.lambda_init", "scu.lambda_min", "scu.lambda_max"}
_GUIDE_STEP_4 = {"scu.kp", "scu.ki", "scu.deadband"} | _LAMBDAS
_JUDGED_TOGETHER = (
    _LAMBDAS,
    {"training.steps", "training.warmup_steps", "training.cooldown_steps"},
    {"scu.actuator", "training.optim"},
    {"data.val_data", "data.val_fraction"},
)
"""When one of these is wrong, the others are not blamed for not fitting it."""
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_WORDS |= {list[str]: "a list of names", type(None): "null"}
_WRONG_KIND = re.compile(r".*_(type|parsing|from_float|error|short)")


def load(path: Path, *, sets: Sequence[str] = (), output: str | None = None) -> RunConfig:
    """Read the run that a YAML file describes.

    sets are `section.key=value`, the value in YAML; the last one for a key counts. They override
    the file, and output overrides both. Raises ConfigError with every problem found.
    """
    problems: list[str] = []
    given: dict[str, tuple[Any, str]] = {}  # dotted key: value, source
    spelled: dict[str, str] = {}
    for written, key, value in _settings(_read(path, problems), problems):
        if key in spelled:
            problems.append(f"{key} is given twice, as {spelled[key]} and as {written}")
        if value is not None:
            given[key], spelled[key] = (value, path.name), written
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals:
            problems.append(f"--set {text}: expected section.key=value")
            continue
        wrong: list[str] = []
        content = {name.strip(): _parse(value, f"--set {text}", wrong)}
        given |= {key: (v, "--set") for _, key, v in _settings(content, wrong)}
        problems += [f"--set {text}: {line}" for line in wrong]
    if output is not None:
        given["output"] = output, "--output"
    given = {key: pair for key, pair in given.items() if pair[0] is not None}

    config = _validate(given, problems)
    if config is None or problems:
        many = f"{len(problems)} problems\n  " if len(problems) > 1 else ""
        raise ConfigError(f"{path}: {many}" + "\n  ".join(problems))
    for key, info in FIELDS.items():
        default = next((str(m) for m in info.metadata if isinstance(m, From)), "default")
        default = "guide step 4" if key in _GUIDE_STEP_4 else default
        config._sources[key] = given[key][1] if key in given else default
    return config


def dump(config: RunConfig) -> str:
    """YAML that load() reads back to an equal config; after each value, where it came from."""
    lines, section = [], ""
    for key in FIELDS:
        head, _, name = key.rpartition(".")
        if head != section:
            lines += [f"{head}:"] if head else []
            section = head
        value = attrgetter(key)(config)
        style = '"' if isinstance(value, str | list) else None
        text = yaml.safe_dump(
            value, default_flow_style=True, default_style=style, width=math.inf, allow_unicode=True
        )
        line = f"{name}: " + text.removesuffix("\n").removesuffix("\n...")
        if key == "data.val_fraction" and config.data.val_data is not None:
            line = f"# {line} is not used beside val_data"
        elif key in config.sources:
            line += f"  # {config.sources[key]}"
        lines.append("  " * bool(head) + line)
    return "\n".join(lines) + "\n"


def check_ready(config: RunConfig) -> None:
    """Raise ConfigError while a value is still the placeholder of the guide's template."""
    left = [
        f"{key} is still the template's {value!r}; put your own there"
        for key in FIELDS
        if isinstance(value := attrgetter(key)(config), str)
        and value.startswith(("your-model-id", "path/to/"))
    ]
    if left:
        raise ConfigError("\n".join(left))


class _Loader(yaml.SafeLoader):
    """Notes keys that stand twice in one mapping: YAML forbids them, PyYAML keeps the last."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.twice: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in seen:
                first = f"first in line {seen[key.value]}"
                self.twice.append(f"line {line}: {key.value} is given twice, {first}")
            seen[key.value] = line
        return super().construct_mapping(node, deep)


def _parse(text: str, where: str, problems: list[str]) -> Any:
    try:
        loader = _Loader(text)
        content = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error
    problems += loader.twice
    return content


def _read(path: Path, problems: list[str]) -> dict[Any, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text in UTF-8") from error
    content = _parse(text, str(path), problems)
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: expected the sections {', '.join(SECTIONS)}, found {short(content)}"
        )
    return content


def _settings(content: Mapping[Any, Any], problems: list[str]) -> Iterator[tuple[str, str, Any]]:
    """Yield each setting as it is written, its dotted key and its value."""
    flat: list[tuple[str, Any]] = []
    for name, value in content.items():
        if name in SECTIONS and isinstance(value, dict):
            flat += [(f"{name}.{key}", inner) for key, inner in value.items()]
        elif name not in SECTIONS or name in NAMES:
            flat.append((str(name), value))
        elif value is not None:
            problems.append(f"{name}: expected a section with its settings, got {short(value)}")
    for written, value in flat:
        if written in NAMES:
            yield written, NAMES[written], value
        else:
            problems.append(f"unknown key {written}; {_hint(written, isinstance(value, dict))}")


def _hint(written: str, is_section: bool) -> str:
    section, _, name = written.rpartition(".")
    if section and name in NAMES:
        home = NAMES[name].rpartition(".")[0]
        return f"`{name}` belongs " + (f"under {home}" if home else "outside the sections")
    bare = [spelling for spelling in NAMES if "." not in spelling]
    own = [spelling for spelling in bare if NAMES[spelling].startswith(f"{section}.")]
    for close in get_close_matches(name, own, n=1):
        return f"did you mean {section}.{close}?"
    for close in get_close_matches(name, SECTIONS if is_section else bare, n=1):
        return f"did you mean {NAMES.get(close, close)}?"
    known = [key for key in FIELDS if key.startswith(f"{section}.")]
    return f"expected one of {', '.join(known or SECTIONS)}"


def _validate(given: dict[str, tuple[Any, str]], problems: list[str]) -> RunConfig | None:
    """The config, or None and why not."""
    nested: dict[str, Any] = {section: {} for section in SECTIONS}
    for key, (value, _) in given.items():
        section, _, name = key.rpartition(".")
        (nested[section] if section else nested)[name] = value
    try:
        return RunConfig.model_validate(nested)
    except ValidationError as error:
        details = [d for d in error.errors() if d["type"] != "default_factory_not_called"]
    wrong: dict[str, str] = {}
    for detail in details:
        key = _blamed(detail)
        value, source = given.get(key, (None, ""))
        flag = f" ({source})" if source.startswith("--") else ""
        wrong.setdefault(key, _described(key, detail, value) + flag)
    problems += wrong.values()
    # Once more without them, for the checks that were not reached.
    unfit = set(wrong).union(*(group for group in _JUDGED_TOGETHER if group & wrong.keys()))
    rest = {key: pair for key, pair in given.items() if key not in unfit}
    for key in wrong:
        if FIELDS[key].is_required():
            rest[key] = (0.5 if key == "scu.target_s" else "stand-in"), ""
    _validate(rest, problems)
    return None


def _blamed(detail: ErrorDetails) -> str:
    """The dotted key of the field, or of the one that a check of several names first."""
    where = ".".join(str(part) for part in detail["loc"][:2])
    words = re.findall(r"[\w.]+", detail["msg"])
    keys = [where, *(f"{where}.{word}".lstrip(".") for word in words)]
    return next(key for key in keys if key in FIELDS)


def _described(key: str, detail: ErrorDetails, value: Any) -> str:
    message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    message = message.replace("be greater than 0", "be positive")
    if detail["type"] == "value_error":
        message = message.removeprefix(f"{key}: ").replace(f"{key.split('.')[-1]} must", "must")
        return f"{key}: {message}"
    if key == "scu.target_s":
        got = "missing" if value is None else f"expected a number, got {short(value)}"
        return f"{key}: {got}; give S* as a fraction, such as 0.03"
    if detail["type"] == "missing":
        return f"{key}: missing. {FIELDS[key].description}"
    if _WRONG_KIND.fullmatch(detail["type"]):
        kinds = kinds_of(FIELDS[key].annotation)
        expected = " or ".join(_WORDS.get(kind, str(kind)) for kind in kinds)
        return f"{key}: expected {expected}, got {short(value)}"
    return f"{key}: {message}, got {short(value)}"
