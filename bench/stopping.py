"""Does a run end itself, rightly, and in time? `python -m bench.stopping --text NAME=PATH ...`

Positive cases: three texts, three sizes, five seeds, one configuration with S* inside the reachable
range. Controls: the same with one thing wrong.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from bench.common import ROOT, WORK, Job, quiet, run_all, write_documents

CONFIG = ROOT / "bench" / "stopping.yaml"
SIZES = (25_000, 50_000, 100_000)
STEPS = 700
SEEDS = (1, 2, 3, 4, 5)
HELD_OUT_TOKENS = 12_000
SCORE_EVERY = 100
CONTROL_SEEDS = (1, 2)
CONTROL_SIZE = 50_000
CONTROL_STEPS = 300
CONTROLS: dict[str, tuple[str, ...]] = {
    "lambda disconnected": ("scu.actuator=none",),
    "S* above reach": ("scu.target_s=0.3", "scu.prior_sigma=0.1"),
    "S* far below": ("scu.target_s=0.001",),
    "gains far too high": ("scu.kp=20", "scu.ki=4"),
    "random tokens": (),
    "learning rate 0": ("training.learning_rate=1e-30",),
    "diverging": (
        "training.learning_rate=0.1",
        "training.max_grad_norm=0",
        "scu.prior_sigma=0.1",
    ),
}
"""What is wrong, and the settings that make it so."""


def texts_of(given: list[str], folder: Path) -> dict[str, dict[int | str, str]]:
    """Of each text, files of each size, and one of later documents to test on."""
    largest = max(SIZES)
    texts: dict[str, dict[int | str, str]] = {}
    for name, source in [("stdlib", "stdlib:train"), *(pair.split("=", 1) for pair in given)]:
        own = texts[name] = {}
        for size in SIZES:
            own[size] = write_documents(source, folder / f"{name}-{size}.jsonl", tokens=size)
        noise = folder / f"random-{len(texts)}.jsonl"
        own["random"] = random_text(noise, CONTROL_SIZE, seed=len(texts))
        beyond = ("stdlib:held-out", 0) if name == "stdlib" else (source, largest)
        file = folder / f"{name}-held-out.jsonl"
        own["held-out"] = write_documents(
            beyond[0], file, tokens=HELD_OUT_TOKENS, after=beyond[1]
        )
    return texts


def random_text(file: Path, tokens: int, seed: int) -> str:
    """Documents of tokens drawn uniformly from the base model's vocabulary; the path."""
    from scu.config import Model
    from scu.engines.loading import load_tokenizer

    tokenizer, draw = load_tokenizer(Model(base_model="embedded")), random.Random(seed)
    printable = [i for i in range(len(tokenizer)) if tokenizer.decode([i]).isprintable()]
    lines = []
    for _ in range(tokens // 500):
        text = tokenizer.decode(draw.choices(printable, k=500))
        lines.append(json.dumps({"text": text}) + "\n")
    file.write_text("".join(lines), encoding="utf-8")
    return str(file)


def positive_jobs(texts: dict[str, dict[int | str, str]], seeds: tuple[int, ...]) -> Iterator[Job]:
    """Unstopped runs, with the held-out bits along the way."""
    for seed in seeds:
        for name, files in texts.items():
            for size in SIZES:
                sets = (
                    f"data.train_data={files[size]}",
                    f"data.val_data={files['held-out']}",
                    "data.val_fraction=null",
                    f"training.seed={seed}",
                    f"training.steps={STEPS}",
                    "scu.stop=never",
                )
                yield Job(f"never-{name}-{size}-{seed}", CONFIG, sets, SCORE_EVERY, branch=True)


def control_jobs(
    texts: dict[str, dict[int | str, str]], seeds: tuple[int, ...]
) -> Iterator[Job]:
    for seed in seeds:
        for control, wrong in CONTROLS.items():
            for name, files in texts.items():
                source = files["random" if control == "random tokens" else CONTROL_SIZE]
                sets = (
                    f"data.train_data={source}",
                    f"training.seed={seed}",
                    f"training.steps={CONTROL_STEPS}",
                    "scu.stop=never",
                    *wrong,
                )
                yield Job(f"{control.replace(' ', '-')}-{name}-{seed}", CONFIG, sets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--work", type=Path, default=WORK / "stopping")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--control-seeds", type=int, nargs="*", default=CONTROL_SEEDS)
    options = parser.parse_args()
    quiet()
    texts = texts_of(options.text, options.work / "texts")
    jobs = [
        *positive_jobs(texts, tuple(options.seeds)),
        *control_jobs(texts, tuple(options.control_seeds)),
    ]
    run_all(jobs, options.work)


if __name__ == "__main__":
    main()
