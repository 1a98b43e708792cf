"""Does a model draw as well as it reads: its drawings, and its answers about these same drawings.

Counts alone; who judged the drawings and who graded the answers is the caller's.
"""

from collections.abc import Sequence

from triptych.evals.intervals import share


def imbalance(outcomes: Sequence[tuple[bool, bool]]) -> dict[str, dict[str, float]]:
    """Both halves of the imbalance of generation and understanding (UniRL, arXiv 2505.23380); low is good.

    ``outcomes`` has (generation right, understanding right) of each task. Generation: the model draws the
    prompt, and a judge that it never sees finds the drawing right or wrong. Understanding: the SAME model is
    asked the task's question about its OWN drawing, right or wrong as that is, and its answer is right where
    it says all that the PROMPT implies.

    "right_but_misread": P(understanding wrong | generation right). The picture shows what the prompt implies,
    so the answer is wrong about the picture. "read_but_misdrawn": P(generation wrong | understanding right).
    The answer says what the picture should have shown: the model draws worse than it knows, or it answers
    without looking, which :mod:`triptych.evals.collusion` tells apart. Each is a row of n, score, low, high
    (Wilson, 95%); where n is 0 the score means nothing.
    """
    drawn = [read for drawing, read in outcomes if drawing]
    read = [drawing for drawing, read in outcomes if read]
    return {
        "right_but_misread": share(len(drawn) - sum(drawn), len(drawn)),
        "read_but_misdrawn": share(len(read) - sum(read), len(read)),
    }
