"""Peak memory of scoring image tokens with gradients: in chunks of positions, against all logits at once.

Each way runs in a process of its own, forward and backward; the figure is the growth of the resident peak.

    python benchmarks/scoring_memory.py [--rows 8] [--actions 576] [--vocabulary 16384] [--runs 3]
"""

import argparse
import resource
import statistics
import subprocess
import sys

import torch

from triptych.kernels.tokens import score, score_hidden
from triptych.trajectory import Sampling

MIB = 2**20


def peak() -> float:
    """Largest resident size of this process so far, MiB."""
    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MIB
    )


def measure(way: str, rows: int, actions: int, vocabulary: int, width: int = 64) -> float:
    torch.set_num_threads(1)
    head = torch.nn.Linear(width, vocabulary)
    hidden = torch.randn(rows, actions, width, requires_grad=True)
    tokens = torch.randint(vocabulary, (rows, actions))
    before = peak()
    if way == "naive":
        found = score(head(hidden), tokens, Sampling())
    else:
        found = score_hidden(hidden, head, tokens, Sampling(), vocabulary=vocabulary)
    found.logp.sum().backward()
    return peak() - before


def in_a_process(way: str, asked: argparse.Namespace) -> float:
    sizes = [f"--{name}={getattr(asked, name)}" for name in ("rows", "actions", "vocabulary")]
    done = subprocess.run(
        [sys.executable, __file__, "--way", way, *sizes], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rows", 8), ("actions", 576), ("vocabulary", 16384), ("runs", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--way", choices=("naive", "chunked"))
    asked = parser.parse_args()
    if asked.way:
        print(measure(asked.way, asked.rows, asked.actions, asked.vocabulary))
        return
    print(
        f"{asked.rows} rows x {asked.actions} actions x {asked.vocabulary} codes, forward and backward, MiB"
    )
    print(f"{'run':>4} {'all at once':>12} {'chunked':>9} {'ratio':>6}")
    ratios = []
    for run in range(asked.runs):
        naive, chunked = (in_a_process(way, asked) for way in ("naive", "chunked"))
        ratios.append(naive / chunked)
        print(f"{run:>4} {naive:>12.0f} {chunked:>9.0f} {ratios[-1]:>6.2f}")
    print(f"ratio {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")


if __name__ == "__main__":
    main()
